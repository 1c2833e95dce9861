"""Tokens dropped: their logits become -inf, and at least one stays. Axes: S sequences, V vocabulary."""

import math

import torch
from torch import Tensor

NUCLEUS_HEAD = 1024  # likeliest tokens that nearly always reach top_p, and are found much faster than a whole order


def top_n_sigma(logits: Tensor, n: Tensor) -> Tensor:
    """Drop logits more than `n` [S] standard deviations below the largest (arXiv 2411.07641)."""
    alive = logits.isfinite()
    count = alive.sum(-1, keepdim=True)
    mean = torch.where(alive, logits, 0).sum(-1, keepdim=True) / count
    variance = torch.where(alive, (logits - mean).square(), 0).sum(-1, keepdim=True) / count
    return _drop(logits, logits < logits.amax(-1, keepdim=True) - n[:, None] * variance.sqrt())


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the `k` [S] likeliest tokens, and all that equal the last of them (arXiv 1805.04833)."""
    most = min(int(k.max()), logits.shape[-1])
    ranked = logits.topk(most).values
    last = ranked.gather(1, (k.long().clamp(1, most) - 1)[:, None])
    return _drop(logits, logits < last)


def likeliest_k(logits: Tensor, k: Tensor, room: int) -> tuple[Tensor, Tensor] | None:
    """What `top_k` keeps as `room` columns: their logits and tokens, both [S, room], in the order of the tokens.

    None where some row keeps more, because of equals, or where the vocabulary has no more anyhow.
    """
    if not 0 < room < logits.shape[-1]:
        return None
    ranked, tokens = logits.topk(room + 1)
    ranked = _drop(ranked, ranked < ranked.gather(1, (k.long() - 1)[:, None]))
    if ranked[:, -1].isfinite().any():
        return None
    tokens, order = tokens[:, :-1].sort()
    return ranked.gather(1, order), tokens


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p` [S] (nucleus, arXiv 1904.09751)."""
    probs = logits.softmax(-1)
    ranked, order = probs.topk(min(NUCLEUS_HEAD, logits.shape[-1]))
    if (ranked.sum(-1) < p).any():
        ranked, order = probs.sort(descending=True)
    likelier = ranked.cumsum(-1) - ranked  # probability of all tokens before this one
    return _keep(logits, order, likelier < p[:, None])


def top_a(logits: Tensor, a: Tensor) -> Tensor:
    """Drop tokens less likely than `a` [S] times the square of the likeliest's probability (BlinkDL, "top-a")."""
    probs = logits.softmax(-1)
    return _drop(logits, probs < a[:, None] * probs.amax(-1, keepdim=True).square())


def min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Drop tokens less likely than `p` [S] times the likeliest (arXiv 2407.01082)."""
    least = logits.amax(-1) + p.log()
    return _drop(logits, logits < least[:, None])


def tail_free(logits: Tensor, z: Tensor) -> Tensor:
    """Cut the tail where the curvature of the sorted probabilities has summed up to `z` [S] (Phénix, Egan 2019).

    Second differences in absolute value, as shares of their sum; token i + 1 stays while the shares up to i reach
    at most z.
    """
    probs, order = logits.softmax(-1).sort(descending=True)
    curvature = probs.diff().diff().abs()
    total = curvature.sum(-1, keepdim=True)
    straight = total == 0
    reached = curvature.cumsum(-1) / torch.where(straight, 1, total)
    inside = (reached <= z[:, None]) | straight
    first, last = torch.ones_like(straight), straight
    return _keep(logits, order, torch.cat([first, inside, last], -1))


def typical(logits: Tensor, p: Tensor) -> Tensor:
    """Keep tokens whose surprise is nearest the entropy, until their probability reaches `p` [S] (arXiv 2202.00666)."""
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    entropy = -torch.xlogy(probs, probs).sum(-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    ranked, order = distance.sort()
    likelihood = probs.gather(1, order)
    nearer = likelihood.cumsum(-1) - likelihood  # probability of all tokens before this one
    last = (nearer < p[:, None]).sum(-1, keepdim=True) - 1
    return _drop(logits, distance > ranked.gather(1, last.clamp_min(0)))


def mirostat(logits: Tensor, bound: Tensor) -> Tensor:
    """Drop tokens that surprise by more than `bound` [S] bits (mirostat 2.0, arXiv 2007.14966, algorithm 2)."""
    surprise = logits.log_softmax(-1) / -math.log(2)
    most = torch.maximum(bound[:, None], surprise.amin(-1, keepdim=True))
    return _drop(logits, surprise > most)


def next_bound(bound: float, surprise: float, tau: float, eta: float) -> float:
    """Mirostat's step: towards texts whose tokens surprise by `tau` bits on average, at the rate `eta`."""
    return bound - eta * (surprise - tau)


def exclude_top(logits: Tensor, threshold: Tensor, spared: Tensor) -> Tensor:
    """XTC: of tokens of probability `threshold` [S] or more drop all but the least likely (P. E. Weidmann, 2024).

    Whether it happens at all is drawn for each token elsewhere. `spared` [S, V] bool: neither dropped nor counted.
    (text-generation-webui #6335)
    """
    probs = logits.softmax(-1)
    top = (probs >= threshold[:, None]) & ~spared
    least = torch.where(top, probs, 2).amin(-1, keepdim=True)
    return _drop(logits, top & (probs > least))


def _drop(logits: Tensor, dropped: Tensor) -> Tensor:
    return logits.masked_fill(dropped, -math.inf)


def _keep(logits: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """`kept` [S, n] says which tokens of `order` [S, n] stay; those that it does not list go."""
    return _drop(logits, ~torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, kept))
