"""exp in fp32 by arithmetic that LLVM turns into vectors, which it does not do with a call of the C library."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from polybit.kernels.cpu.bits import ROUNDER, from_bits

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = (
    np.float32(0.693359375),
    np.float32(-2.12194440e-4),
)  # the first has few bits: its multiples are exact
LEAST, MOST = np.float32(-87.0), np.float32(88.0)  # beyond, results leave the normal range
BIAS = np.int32(127)


@njit(cache=True, error_model="numpy")
def exponentials(x: NDArray[np.float32]) -> None:
    """x becomes exp(x), in place, for x of at most 88; less than -87 gives 0. Relative error below 2e-7; NaN stays."""
    for i in range(len(x)):
        inside = min(max(x[i], LEAST), MOST)
        n = (inside * LOG2_E + ROUNDER) - ROUNDER
        r = (x[i] if x[i] != x[i] else inside) - n * LN2_HIGH
        r -= n * LN2_LOW
        p = np.float32(1.0 / 720)
        for coefficient in (1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
            p = p * r + np.float32(coefficient)
        power = from_bits((np.int32(n) + BIAS) << np.int32(23))
        x[i] = p * power if x[i] > LEAST or x[i] != x[i] else np.float32(0)
