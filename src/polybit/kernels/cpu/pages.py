"""Keys and values into the pages of the K/V pool."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array
from polybit.kernels.cpu.rows import Rows, are_served, rows_of, store_row
from polybit.kernels.pages import Pages


def write_kv(k: Tensor, v: Tensor, k_pages: Pages, v_pages: Pages, slots: Tensor) -> None:
    if k.dtype == v.dtype == torch.float32 and are_served(k_pages) and are_served(v_pages):
        for x, pages in ((k, k_pages), (v, v_pages)):
            _write(array(x), rows_of(pages), array(slots))
    else:
        reference.write_kv(k, v, k_pages, v_pages, slots)


@njit(cache=True, error_model="numpy")
def _write(x: Floats, rows: Rows, slots: NDArray[np.int64]) -> None:
    space = np.empty(x.shape[2], np.float32)
    for t in range(len(slots)):
        for head in range(x.shape[1]):
            store_row(rows, slots[t] * x.shape[1] + head, x[t, head], space)
