"""Guesses that were drawn, and how to draw so that they come true as often as they can, at no cost to the distribution.

Rejection sampling of Leviathan et al. (arXiv 2211.17192). Which token comes then depends on what was guessed, so it is
for requests without a seed. Others draw with their own numbers, whatever was guessed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Guess(NamedTuple):
    token: int
    probs: Tensor | None = None  # [V] that it was drawn from; None: it was not, or by the numbers of the token itself


def with_guesses(logits: Tensor, guesses: Sequence[Guess], uniforms: Tensor) -> Tensor:
    """Logits [S, V] to draw from in place of `logits`: of the guess alone, or of what remains without it.

    With the probability min(1, p / q) that the guess is taken, p by `logits` and q by its own `probs`, and a rest of
    max(0, p - q), a token comes as likely as by `logits`. `uniforms` [S] of [0, 1) decide.
    """
    tokens = torch.tensor([guess.token for guess in guesses], device=logits.device)[:, None]
    p = logits.softmax(-1)
    q = torch.stack([guess.probs for guess in guesses if guess.probs is not None]).to(p)
    taken = uniforms[:, None] * q.gather(1, tokens) < p.gather(1, tokens)
    rest = (p - q).clamp_min(0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # by rounding, where the two are the same
    alone = torch.zeros_like(p).scatter(1, tokens, 1)
    return torch.where(taken, alone, rest).log()
