"""How many threads kernels use: as many as torch does, which is what options set."""

import threading

import numba
import torch

_told = (
    threading.local()
)  # Numba keeps the number for each thread apart, and telling it takes as long as a small kernel


def follow_torch() -> None:
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if getattr(_told, "count", None) != wanted:
        numba.set_num_threads(wanted)
        _told.count = wanted
