"""The two environment variables that polybit reads, and the folders of the platform. Everything else is an argument."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for downloads and compiled kernels: POLYBIT_CACHE, else the platform's user cache (XDG on Linux)."""
    chosen = os.environ.get("POLYBIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "polybit"


def data_dir() -> Path:
    """Folder for what users keep: polybit's own in the platform's user data (XDG on Linux)."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "share") / "polybit"


def device() -> str | None:
    """Device to use where none is named (`cpu`, `cuda`, `cuda:1`, `mps`): POLYBIT_DEVICE; None: polybit chooses."""
    return os.environ.get("POLYBIT_DEVICE") or None
