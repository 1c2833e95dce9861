"""Rotary position embedding of few rows. Formula: kernels/reference/rope.py."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_small


def rope(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if not is_small(q) or not is_small(k):
        return reference.rope(q, k, positions, cos, sin, interleaved)
    rotated = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k)]
    first, second = (x.numpy() for x in rotated)
    _rotate(array(q), array(k), array(positions), array(cos), array(sin), interleaved, first, second)
    return rotated[0], rotated[1]


@njit(cache=True, error_model="numpy")
def _rotate(
    q: Floats, k: Floats, positions: NDArray[np.int64], cos: Floats, sin: Floats, interleaved: bool, q_out: Floats,
    k_out: Floats,
) -> None:  # fmt: skip
    half = cos.shape[1]
    for x, out in ((q, q_out), (k, k_out)):
        for t in range(x.shape[0]):
            c, s = cos[positions[t]], sin[positions[t]]
            for h in range(x.shape[1]):
                for i in range(half):
                    first, second = (2 * i, 2 * i + 1) if interleaved else (i, half + i)
                    a, b = x[t, h, first], x[t, h, second]
                    out[t, h, first] = a * c[i] - b * s[i]
                    out[t, h, second] = b * c[i] + a * s[i]
                for i in range(2 * half, x.shape[2]):
                    out[t, h, i] = x[t, h, i]
