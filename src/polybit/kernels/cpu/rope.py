"""Rotary position embedding. Formula: kernels/reference/rope.py."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array


def rope(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if q.dtype != torch.float32 or k.dtype != torch.float32:
        return reference.rope(q, k, positions, cos, sin, interleaved)
    rotated = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k)]
    places = array(positions), array(cos), array(sin), interleaved
    for x, out in zip((q, k), rotated, strict=True):
        _rotate(array(x), *places, out.numpy())
    return rotated[0], rotated[1]


@njit(cache=True, error_model="numpy")
def _rotate(x: Floats, positions: NDArray[np.int64], cos: Floats, sin: Floats, interleaved: bool, out: Floats) -> None:
    half = cos.shape[1]
    for t in range(x.shape[0]):
        place = positions[t]
        for h in range(x.shape[1]):
            for i in range(half):
                first, second = (2 * i, 2 * i + 1) if interleaved else (i, half + i)
                a, b = x[t, h, first], x[t, h, second]
                out[t, h, first] = a * cos[place, i] - b * sin[place, i]
                out[t, h, second] = b * cos[place, i] + a * sin[place, i]
            for i in range(2 * half, x.shape[2]):
                out[t, h, i] = x[t, h, i]
