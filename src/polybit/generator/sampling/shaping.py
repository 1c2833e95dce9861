"""Logits made flatter or steeper: no token is dropped. Axes: S sequences, V vocabulary."""

import math

import torch
from torch import Tensor

COLDEST = 1e-30  # of which fp32 still has the inverse


def temperature(logits: Tensor, t: Tensor) -> Tensor:
    """Logits over `t` [S], less a constant: from the largest down, so that no t, however small, overflows."""
    return (logits - logits.amax(-1, keepdim=True)) / t.clamp_min(COLDEST)[:, None]


def smoothing(logits: Tensor, factor: Tensor) -> Tensor:
    """max - factor * (logit - max)^2 (quadratic sampling, kalomaze, text-generation-webui #5403); `factor` [S] > 0."""
    largest = logits.amax(-1, keepdim=True)
    return largest - factor[:, None] * (logits - largest).square()


def dynamic_temperature(logits: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> Tensor:
    """Temperature low + (high - low) * (H / Hmax)^exponent, all [S] (kalomaze, koboldcpp "DynaTemp").

    H is the entropy of the tokens that are left, and Hmax what it would be were they all as likely.
    """
    logprobs = logits.log_softmax(-1)
    entropy = -torch.xlogy(logprobs.exp(), logprobs.exp()).sum(-1)
    most = logprobs.isfinite().sum(-1).to(entropy.dtype).log()
    share = torch.where(most > 0, entropy / most, 0).clamp(0, 1)
    return temperature(logits, low + (high - low) * share**exponent)


def skew(logits: Tensor, strength: Tensor) -> Tensor:
    """F^exp(strength) in place of F, the cumulative distribution from the likeliest token down; `strength` [S].

    Drawing u^exp(-strength) where u would be drawn is the same. Above 0, unlikely tokens gain (exllamav2's `skew`).
    """
    ranked, order = logits.softmax(-1).sort(descending=True, stable=True)
    reached = ranked.cumsum(-1)
    reached = (reached / reached[:, -1:]).clamp_max(1) ** strength.exp()[:, None]
    before = torch.nn.functional.pad(reached[:, :-1], (1, 0))
    weights = torch.where(ranked > 0, (reached - before).clamp_min(0), 0)
    return torch.full_like(logits, -math.inf).scatter(1, order, weights.log())


def guided(logits: Tensor, negative: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (arXiv 2306.17806): scale * log p + (1 - scale) * log q; logits of p and q, `scale` [S].

    `negative` is what the model says after the negative prompt. 1 is p alone.
    """
    p, q = logits.log_softmax(-1), negative.log_softmax(-1)
    return q + scale[:, None] * (p - q)
