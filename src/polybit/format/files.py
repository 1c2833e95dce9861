"""Writing files so that a reader sees the old contents or the new, never a part: temporary name, fsync, rename."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from polybit.errors import FormatError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is there at the end becomes `path`, and an error removes it.

    FormatError: the disk is full, or the folder cannot be written.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def atomic_write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """UTF-8, line ends as given."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any, indent: int | None = 4, ascii_only: bool = True) -> None:
    atomic_write_text(path, json.dumps(value, indent=indent, ensure_ascii=ascii_only) + "\n")


def temporary_name(path: Path) -> Path:
    """The same for every run, so that a run after a kill replaces what the killed one left; no reader scans for it."""
    return path.with_name(f".{path.name}.tmp")


def make_folder(path: Path) -> None:
    """And those that it lies in, where they are missing. FormatError: it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def sync(path: Path) -> None:
    """Wait until the file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def unwritable(path: Path, error: Exception) -> FormatError:
    """The error for a file that could not be written, with what to do about it."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (ENOSPC, EDQUOT) or f"os error {ENOSPC}" in str(error):
        return FormatError(f"{path} could not be written: the disk is full; free some space and run again")
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    return FormatError(f"{path} could not be written: {reason}; check the folder's permissions and free space")
