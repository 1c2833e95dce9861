"""Keys and values into the pages of the K/V pool."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_plain
from polybit.kernels.pages import Pages


def write_kv(k: Tensor, v: Tensor, k_pages: Pages, v_pages: Pages, slots: Tensor) -> None:
    if k.dtype == v.dtype == torch.float32 and is_plain(k_pages) and is_plain(v_pages):
        for x, pages in ((k, k_pages), (v, v_pages)):
            _write(array(x).reshape(len(x), -1), pages.numpy().reshape(-1, x[0].numel()), array(slots))
    else:
        reference.write_kv(k, v, k_pages, v_pages, slots)


@njit(cache=True, error_model="numpy")
def _write(rows: Floats, pages: Floats, slots: NDArray[np.int64]) -> None:
    for t in range(len(slots)):
        for i in range(rows.shape[1]):
            pages[slots[t], i] = rows[t, i]
