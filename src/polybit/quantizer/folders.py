"""The folders of a conversion: apart from each other, with room, writable, and for one job at a time."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from polybit.amounts import gigabytes
from polybit.errors import JobError
from polybit.format.files import make_folder, unwritable
from polybit.quantizer.job import Job, OtherVersion

WORK_FOLDER = ".polybit-job"
LOCK = ".polybit-lock"  # in a working folder: whoever holds it works there


def work_folder(out: Path, work_dir: Path | None) -> Path:
    """Where a job's unfinished work lies."""
    return (work_dir or out / WORK_FOLDER).expanduser()


def check_apart(source: Path, out: Path, work: Path) -> None:
    """JobError where writing one folder, or deleting the working folder at the end, would touch another one."""
    for name, folder in (("the result", out), ("work_dir", work)):
        if _lies_in(folder, source):
            raise JobError(f"{name} {folder} would lie in the source {source}; choose a folder outside of it")
        if _lies_in(source, folder):
            raise JobError(f"the source {source} lies in {name} {folder}; choose another folder")
    if _lies_in(out, work):
        raise JobError(f"work_dir {work} is deleted at the end, but {out} would lie in it; choose different folders")


def _lies_in(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Work in a folder, made where it is missing, and keep others out. JobError: another job is at work there."""
    make_folder(work)
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise JobError(f"another conversion is at work in {work}; wait for it, or choose another folder") from None
    except OSError as error:
        raise unwritable(work, error) from error
    try:
        yield
    finally:
        lock.release()
        if not Job.exists(work):
            with suppress(OSError):  # more than the lock is left
                (work / LOCK).unlink(missing_ok=True)
                work.rmdir()


def delete_leftovers(work: Path) -> None:
    """Of a job that is not to be continued."""
    if (work.name == WORK_FOLDER and work.is_dir()) or _is_a_jobs(work):
        with held(work):
            shutil.rmtree(work, ignore_errors=True)


def _is_a_jobs(work: Path) -> bool:
    try:
        Job.check(work)
    except OtherVersion:
        return True
    except JobError:
        return False
    return True


def check_empty(work: Path, out: Path) -> None:
    """JobError where something of the user's is in the way."""
    for taken, own in ((work, LOCK), (out, work.name)):
        if (taken.exists() or taken.is_symlink()) and not taken.is_dir():
            what = "a file" if taken.exists() else "a link to nothing"
            raise JobError(f"{taken} is {what}, expected a new folder's name; give another one")
        found = [path.name for path in sorted(taken.iterdir()) if path.name != own] if taken.exists() else []
        if found:
            raise JobError(
                f"{taken} is not empty (it holds {found[0]}) and is no unfinished conversion; "
                "give a new folder, or empty this one"
            )


def check_no_model(out: Path) -> None:
    """JobError where a job that has written nothing yet would write over weights."""
    found = next(out.glob("*.safetensors"), None)
    if found is not None:
        raise JobError(f"{out} holds a model already ({found.name}); give a new folder")


def check_room(needs: Collection[tuple[Path, float]]) -> None:
    """Folders, and the bytes that each has to take. JobError: they may not be written, or a disk lacks the space."""
    by_disk: dict[int, list[tuple[Path, float]]] = {}
    for folder, num_bytes in needs:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise JobError(f"{existing} is a file, so that {folder} cannot be made; choose another folder")
        if not os.access(existing, os.W_OK):
            raise JobError(f"{existing} may not be written, where {folder} would lie; choose another folder")
        by_disk.setdefault(disk_of(existing), []).append((existing, num_bytes))
    for found in by_disk.values():
        existing, needed = found[0][0], sum(num_bytes for _, num_bytes in found)
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise JobError(
                f"the disk of {existing} has {gigabytes(free)} free, but converting needs about {gigabytes(needed)} "
                "there; free some space or choose another disk for OUT or --work-dir (work_dir)"
            )


def disk_of(existing: Path) -> int:
    return existing.stat().st_dev
