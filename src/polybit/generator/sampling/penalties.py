"""Logits changed by what stands in the text already. Axes: S sequences, V vocabulary, L tokens of text."""

import torch
from torch import Tensor


def occurrences(ids: Tensor, weights: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """ids, weights [S, L] -> the sum and the largest of each token's weights, both [S, V]; 0 where it is not."""
    zeros = weights.new_zeros(len(ids), vocab_size)
    return zeros.scatter_add(1, ids, weights), zeros.scatter_reduce(1, ids, weights, "amax")


def repetition(logits: Tensor, latest: Tensor, penalty: Tensor) -> Tensor:
    """Logits of tokens seen before over `penalty` [S] if positive, else times it (CTRL, arXiv 1909.05858).

    `latest` [S, V], the largest weight of an occurrence, says how much of the penalty a token gets.
    """
    strength = torch.lerp(torch.ones_like(latest), penalty[:, None].expand_as(latest), latest)
    return torch.where(logits > 0, logits / strength, logits * strength)


def presence_and_frequency(
    logits: Tensor, amount: Tensor, latest: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Less `presence` [S] for a token seen before, and `frequency` [S] for each time (OpenAI's API, "penalties").

    amount, latest [S, V]: the sum and the largest of its occurrences' weights.
    """
    return logits - presence[:, None] * latest - frequency[:, None] * amount


def dry_penalty(match: int, multiplier: float, base: float, allowed_length: int) -> float:
    """What DRY takes from the logit of a token that would make a repetition of `match` tokens one longer.

    multiplier * base^(match - allowed_length), for a match of at least `allowed_length` (P. E. Weidmann,
    text-generation-webui #5677).
    """
    return multiplier * base ** (match - allowed_length)
