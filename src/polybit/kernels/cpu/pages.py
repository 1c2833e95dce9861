"""Keys and values of few tokens into the pages of the K/V pool."""

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_plain, is_small
from polybit.kernels.pages import Pages


def write_kv(k: Tensor, v: Tensor, k_pages: Pages, v_pages: Pages, slots: Tensor) -> None:
    if is_small(k) and is_small(v) and is_plain(k_pages) and is_plain(v_pages):
        _write(array(k), array(v), k_pages.numpy(), v_pages.numpy(), array(slots))
    else:
        reference.write_kv(k, v, k_pages, v_pages, slots)


@njit(cache=True, error_model="numpy")
def _write(k: Floats, v: Floats, k_pages: Floats, v_pages: Floats, slots: NDArray[np.int64]) -> None:
    for t in range(len(slots)):
        page, offset = slots[t] // k_pages.shape[1], slots[t] % k_pages.shape[1]
        k_pages[page, offset] = k[t]
        v_pages[page, offset] = v[t]
