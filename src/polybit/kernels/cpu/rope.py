"""Rotary position embedding. Formula: kernels/reference/rope.py."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array
from polybit.kernels.cpu.inner import inner


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
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            rotate_head(x[t, h], cos[positions[t]], sin[positions[t]], interleaved, out[t, h])


@inner()
def rotate_head(x: Floats, cos: Floats, sin: Floats, interleaved: bool, out: Floats) -> None:
    """x [D], cos and sin [dim/2] -> out [D], which may be x."""
    half = len(cos)
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, half + i)
        a, b = x[first], x[second]
        out[first] = a * cos[i] - b * sin[i]
        out[second] = b * cos[i] + a * sin[i]
    for i in range(2 * half, len(x)):
        out[i] = x[i]
