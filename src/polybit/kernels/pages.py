"""How keys and values lie in pages: as numbers of the activations' type, or quantized.

Quantized, a head's features are cut into groups, and each group is stored as codes and one scale. Before, it is turned
by an orthonormal Walsh-Hadamard transform, which spreads what sticks out over the whole group. The transform is its own
inverse and keeps products, so queries are turned likewise and nothing that is read from pages is turned back: attention
turns its mixed values once.

    y = H x,  scale = y's element of largest magnitude / -2^(bits - 1),  code = round(y / scale) + 2^(bits - 1)
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.errors import ConfigError

GROUP = 32  # features that share a scale; fewer where a head is no multiple of it
LEAST_GROUP = 16
SCALE = torch.float16
WORD = torch.int32
WORD_BITS = 32


@dataclass(frozen=True)
class QuantizedPages:
    """Keys or values of one layer. A word's codes lie low bits first."""

    codes: Tensor  # [pages, P, Hkv, D * bits / 32] int32
    scales: Tensor  # [pages, P, Hkv, D / group] fp16
    bits: int  # 4 or 8

    @property
    def page_tokens(self) -> int:
        return self.codes.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.codes.shape[2]

    @property
    def group(self) -> int:
        return self.codes.shape[3] * WORD_BITS // self.bits // self.scales.shape[3]


Pages = Tensor | QuantizedPages  # a tensor is [pages, P, Hkv, D]


@dataclass(frozen=True)
class KVBits:
    """Bits a number of keys and of values; 16 stands for the activations' type, whatever it is."""

    k: int
    v: int

    def __str__(self) -> str:
        return next((name for name, bits in NAMED.items() if bits == self), f"k{self.k}v{self.v}")


FULL = KVBits(16, 16)
NAMED = {"fp16": FULL, "q8": KVBits(8, 8), "q6": KVBits(8, 4), "q4": KVBits(4, 4)}


def read_bits(text: str) -> KVBits:
    """A name, or bits of keys and values as k8v4. Raises ConfigError."""
    if text in NAMED:
        return NAMED[text]
    match = re.fullmatch(r"k(4|8|16)v(4|8|16)", text)
    if match is None:
        raise ConfigError(
            f"cache is {text!r:.60}, expected {', '.join(NAMED)}, or 4, 8 or 16 bits of keys and of values as in k8v4"
        )
    return KVBits(int(match[1]), int(match[2]))


def group_of(head_dim: int) -> int:
    """Features of a head that share a scale. Raises ConfigError for heads that cannot be quantized."""
    group = math.gcd(head_dim, GROUP)
    if group < LEAST_GROUP:
        raise ConfigError(
            f"heads of {head_dim} features cannot be quantized in the cache, which needs a multiple of {LEAST_GROUP}; "
            "load with cache='fp16'"
        )
    return group


def new_pages(shape: Sequence[int], bits: int, dtype: torch.dtype, device: torch.device) -> Pages:
    """Room for [pages, P, Hkv, D], not zeroed. Raises ConfigError."""
    if bits == FULL.k:
        return torch.empty(*shape, dtype=dtype, device=device)
    *rows, head_dim = shape
    return QuantizedPages(
        torch.empty(*rows, head_dim * bits // WORD_BITS, dtype=WORD, device=device),
        torch.empty(*rows, head_dim // group_of(head_dim), dtype=SCALE, device=device),
        bits,
    )


def row_bytes(head_dim: int, bits: int, dtype: torch.dtype) -> int:
    """Of one head of one token in such pages."""
    if bits == FULL.k:
        return head_dim * dtype.itemsize
    return head_dim * bits // 8 + head_dim // group_of(head_dim) * SCALE.itemsize


def tensors_of(pages: Pages) -> tuple[Tensor, ...]:
    """All of their memory; the first two axes of each are pages and tokens."""
    return (pages,) if isinstance(pages, Tensor) else (pages.codes, pages.scales)
