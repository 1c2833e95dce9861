"""The scales of one group: 4-bit codes and a shared fp16 maximum, by a search over one common factor (format 9.3)."""

import numpy as np
import torch
from torch import Tensor

from polybit.kernels.rounding import Rounding

NUM_FACTORS = 97
MIN_FACTOR, MAX_FACTOR = np.float32(0.70), np.float32(1.20)


def _factors() -> Tensor:
    share = np.arange(NUM_FACTORS, dtype=np.float32) / np.float32(NUM_FACTORS - 1)
    return torch.from_numpy(MIN_FACTOR * (1 - share) + MAX_FACTOR * share)


FACTORS = _factors()


def search_scales(x: Tensor, bits: int, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """x [R, N] fp32, the group's rows -> codes [N] uint8 and the scale maximum, a scalar in fp16."""
    base = (x.abs().amax(0) + 1e-12) / ((1 << (bits - 1)) - 0.5)
    top = base.max()
    integers = ((base / top).sqrt() * 16).round().clamp(1, 16)
    trial = (integers / 16).square() * top
    factors = FACTORS.to(x.device)
    best = factors[rounding.factor_errors(x, trial, factors, bits).argmin()]
    return (integers - 1).to(torch.uint8), (top * best).half()
