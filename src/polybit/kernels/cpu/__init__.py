"""Kernels for CPUs in Numba, compiled at first use and cached on disk. Needs the extra `polybit[cpu]`."""

from contextlib import suppress

import numba

from polybit import env

# Compiled kernels go beside polybit's other files, not into site-packages, unless NUMBA_CACHE_DIR says otherwise.
# (Numba fills its config in at run time, so type checkers do not see CACHE_DIR.)
if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    with suppress(OSError):  # a read-only home: Numba looks for a place itself
        (env.cache_dir() / "numba").mkdir(parents=True, exist_ok=True)
        numba.config.CACHE_DIR = str(env.cache_dir() / "numba")  # type: ignore[attr-defined]
