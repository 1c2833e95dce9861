"""The scales of one group: 4-bit codes and a shared fp16 maximum.

Either by the original's search over one common factor (format 9.3), or fitted: the code of each column and the maximum
of all that cost least.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from polybit.kernels.reference.groups import fit
from polybit.kernels.rounding import Rounding

NUM_FACTORS = 97
MIN_FACTOR, MAX_FACTOR = np.float32(0.70), np.float32(1.20)


@cache
def factors(device: torch.device) -> Tensor:
    """[NUM_FACTORS], kept on each device."""
    share = np.arange(NUM_FACTORS, dtype=np.float32) / np.float32(NUM_FACTORS - 1)
    return torch.from_numpy(MIN_FACTOR * (1 - share) + MAX_FACTOR * share).to(device)


def search_scales(x: Tensor, bits: int, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """x [R, N] fp32, the group's rows -> codes [N] uint8 and the scale maximum, a scalar in fp16."""
    base = (x.abs().amax(0) + 1e-12) / ((1 << (bits - 1)) - 0.5)
    top = base.max()
    integers = ((base / top).sqrt() * 16).round().clamp(1, 16)
    trial = (integers / 16).square() * top
    tried = factors(x.device)
    best = tried.take(rounding.factor_errors(x, trial, tried, bits).argmin())
    return (integers - 1).to(torch.uint8), (top * best).half()


NUM_MAXIMA = 24
HIGHEST = 1.15  # the largest maximum tried, as a multiple of the one that clips nothing
# By bits: the smallest maximum tried, likewise, and how many codes a column tries under each. Few levels want scales
# that clip a lot, many levels want none that clip.
LOWEST: Mapping[int, float] = {2: 0.2, 3: 0.35, 4: 0.5, 5: 0.6, 6: 0.7, 8: 0.7}
WINDOWS: Mapping[int, int] = {2: 7, 3: 5, 4: 4, 5: 3, 6: 3, 8: 3}


@dataclass(frozen=True)
class Fit:
    codes: Tensor  # [G, N] uint8
    scale_max: Tensor  # [G] fp16
    cost: Tensor  # [G] fp64: the sum over a group of row weight times column weight times squared error


@cache
def shares(bits: int, num_maxima: int, device: torch.device) -> Tensor:
    """[num_maxima], kept on each device: the maxima tried, as multiples of the one that clips nothing."""
    return torch.logspace(np.log10(LOWEST[bits]), np.log10(HIGHEST), num_maxima, device=device)


def fit_scales(
    x: Tensor, row_weights: Tensor, column_weights: Tensor, bits: int, rounding: Rounding, num_maxima: int
) -> Fit:
    """x [G, R, N] fp32, the rows of groups, row_weights [G, R], column_weights [N]. Realised scales are compared."""
    tried = shares(bits, num_maxima, x.device)
    return Fit(*fit(rounding.scale_costs, x, row_weights, column_weights, tried, bits, WINDOWS[bits]))
