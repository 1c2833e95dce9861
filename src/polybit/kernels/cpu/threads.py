"""The cores that the loops of quantization use: as many threads as torch has, for one of them at a time."""

import threading

import numba
import torch

_turn = threading.Lock()
_told = threading.local()  # Numba keeps the number for each thread apart; telling it takes as long as a small kernel


def cores() -> threading.Lock:
    """Around every call of a function with `parallel`: one of the layers of threads ends the process if two call."""
    wanted = torch.get_num_threads()
    if getattr(_told, "count", None) != wanted:
        numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        if torch.get_num_threads() != wanted:  # Numba started its threads, and told OpenMP, which torch uses too
            torch.set_num_threads(wanted)
        _told.count = wanted
    return _turn
