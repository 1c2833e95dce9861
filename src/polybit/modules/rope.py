"""Tables of cos and sin by position.

All in fp32 and in transformers' order of operations: at positions of some ten thousands, another rounding of the
frequencies would already turn the fastest pairs visibly.
"""

import math

import torch
from torch import Tensor
from typing_extensions import assert_never

from polybit.spec import (
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    Unscaled,
    YarnScaling,
)

FIRST_POSITIONS = 2048  # rows of a table in use; where more are needed, it doubles


class RopeTable:
    """cos and sin of one rope, as far as sequences have reached: contexts of a million tokens are seldom filled.

    A longer table takes the place of a shorter one elsewhere in memory.

    Dynamic NTK and LongRoPE choose their frequencies by `max_seq_len`, once and for all sequences.
    """

    def __init__(self, rope: Rope, max_seq_len: int, device: torch.device) -> None:
        self._frequencies, self._factor = _frequencies(rope, max_seq_len)
        self._device = device
        self._rows = self._computed(0)

    def up_to(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [L, dim/2] of L >= `length` positions, in fp32, the scaling's attention factor included."""
        if length > len(self._rows[0]):
            self._rows = self._computed(max(length, 2 * len(self._rows[0]), FIRST_POSITIONS))
        return self._rows

    def _computed(self, length: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(length, dtype=torch.float32)[:, None] * self._frequencies
        return (angles.cos() * self._factor).to(self._device), (angles.sin() * self._factor).to(self._device)


class RopeTables:
    """The tables of one model: blocks of equal rope share one."""

    def __init__(self, max_seq_len: int, device: torch.device) -> None:
        self._max_seq_len, self._device = max_seq_len, device
        self._tables: dict[Rope, RopeTable] = {}

    def of(self, rope: Rope) -> RopeTable:
        if rope not in self._tables:
            self._tables[rope] = RopeTable(rope, self._max_seq_len, self._device)
        return self._tables[rope]

    def reserve(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """Grow every table to `length` positions: none moves any more while sequences are no longer than that.

        Returns them, because whoever works with their addresses must keep them, should longer ones take their place.
        """
        return [table.up_to(length) for table in self._tables.values()]


def _frequencies(rope: Rope, max_seq_len: int) -> tuple[Tensor, float]:
    """Radians a position [dim/2], and the factor on cos and sin."""
    match rope.scaling:
        case Unscaled():
            return 1.0 / _wavelengths(rope), 1.0
        case LinearScaling(factor=factor):
            return 1.0 / _wavelengths(rope) / factor, 1.0
        case DynamicNtkScaling(factor=factor, original_length=original):
            stretch = factor * max(max_seq_len, original) / original - (factor - 1)
            return 1.0 / _wavelengths(rope.with_ntk(stretch)), 1.0
        case Llama3Scaling() as llama3:
            return _llama3(1.0 / _wavelengths(rope), llama3), 1.0
        case YarnScaling() as yarn:
            return _yarn(rope, yarn), yarn.attention_factor
        case LongRopeScaling() as longrope:
            factors = longrope.long_factors if max_seq_len > longrope.original_length else longrope.short_factors
            return 1.0 / (torch.tensor(factors) * _wavelengths(rope)), longrope.attention_factor
        case _:
            assert_never(rope.scaling)


def _wavelengths(rope: Rope) -> Tensor:
    """theta^(2i/dim) [dim/2]: positions a radian."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    return torch.as_tensor(rope.theta**exponents)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divided by `factor` where a turn takes over original/low positions, kept below original/high, a ramp between."""
    turns = scaling.original_length * frequencies / (2 * math.pi)  # in the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(rope: Rope, scaling: YarnScaling) -> Tensor:
    """Kept below dimension `low`, divided by `factor` above `high`, a ramp between (arXiv 2309.00071, section 3.2)."""
    low, high = (_yarn_dimension(rope, scaling, turns) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = high - low if high != low else 0.001
    divided = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    wavelengths = _wavelengths(rope)
    return divided / (scaling.factor * wavelengths) + (1 - divided) / wavelengths


def _yarn_dimension(rope: Rope, scaling: YarnScaling, turns: float) -> float:
    """The (fractional) pair that makes `turns` turns in the original context."""
    return rope.dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
