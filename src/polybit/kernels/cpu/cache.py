"""Where compiled kernels are kept: beside polybit's other files, not in site-packages."""

import hashlib
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numba

from polybit import env

log = logging.getLogger(__name__)


def keep_compiled() -> None:
    """Tell Numba, unless NUMBA_CACHE_DIR does. Where nothing can be written, new ones last as long as the process."""
    chosen = numba.config.CACHE_DIR  # type: ignore[attr-defined]  # filled in at run time
    folder = Path(chosen) if chosen else env.cache_dir() / "numba" / _sources()
    if not _writable(folder):
        own = Path(_of_this_process().name)
        if not _copy_compiled(folder, own):
            log.warning(
                "compiled kernels cannot be kept in %s, so every process compiles them anew, for some seconds; "
                "set %s to a folder that can be written",
                folder,
                "NUMBA_CACHE_DIR" if chosen else "POLYBIT_CACHE",
            )
        folder = own
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]  # filled in at run time


def _sources() -> str:
    """Names this package's code: Numba looks at the file of a function alone, and not at what that is made of."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    return False


def _copy_compiled(folder: Path, own: Path) -> int:
    """What others have compiled, some megabytes: Numba takes no folder that it cannot write to -> how many files."""
    count = 0
    with suppress(OSError):
        for path in folder.glob(f"{Path(__file__).parent.name}_*/*.nb[ic]"):  # as Numba names them
            copy = own / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            count += 1
    return count


@cache
def _of_this_process() -> "tempfile.TemporaryDirectory[str]":
    """Removed when the process ends, which is when the last reference to it does."""
    return tempfile.TemporaryDirectory(prefix="polybit-")
