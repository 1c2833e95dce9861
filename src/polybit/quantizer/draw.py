"""Tokens drawn from rows of probabilities."""

import torch
from torch import Tensor


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """[T, V], each row of any positive sum, and a generator on the CPU -> [T] int64.

    By inverting the distribution function: one random number a row. torch.multinomial takes one for each of V.
    """
    reached = probabilities.cumsum(-1)
    chosen = torch.rand(len(reached), 1, generator=generator).to(reached.device) * reached[:, -1:]
    return torch.searchsorted(reached, chosen, right=True)[:, 0].clamp_(max=reached.shape[1] - 1)
