"""Kernels for CPUs in Numba, compiled at first use and cached on disk. Needs the extra `polybit[cpu]`."""

import os

from polybit import env

# Numba reads this at import: compiled kernels go beside polybit's other files, and never into site-packages.
os.environ.setdefault("NUMBA_CACHE_DIR", str(env.cache_dir() / "numba"))
