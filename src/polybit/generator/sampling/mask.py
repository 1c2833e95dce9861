"""Sets of tokens as bits, 32 a word: small on their way to the device, and quickly joined on the host."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenMask = NDArray[np.int32]  # [ceil(V / 32)]; bit i % 32 of word i // 32 stands for token i


def mask_of(tokens: Iterable[int], vocab_size: int) -> TokenMask:
    """Those of `tokens` that the vocabulary has."""
    chosen = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
    ids = np.fromiter(tokens, np.int64)
    chosen[ids[ids < vocab_size]] = True
    return np.packbits(chosen, bitorder="little").view(np.int32)


def holds(mask: TokenMask, token: int) -> bool:
    return 0 <= token < 32 * len(mask) and bool(mask[token // 32] >> (token % 32) & 1)


def tokens_in(mask: TokenMask) -> list[int]:
    listed: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return listed


def is_member(masks: Tensor, vocab_size: int) -> Tensor:
    """masks [S, W] int32 -> [S, V] bool."""
    shifts = torch.arange(32, dtype=torch.int32, device=masks.device)
    return (masks[:, :, None] >> shifts & 1).flatten(1)[:, :vocab_size] != 0
