"""Logits to tokens: pure functions over a batch, one row of parameters per sequence, because a batch mixes requests.

Axes: S sequences, V vocabulary. Order of application: PENALTIES, then FILTERS, as they stand in their registries. In a
row whose parameter is neutral a function changes no bit. A dropped token has logit -inf.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.errors import KernelError
from polybit.generator.params import SamplingParams

NUCLEUS_HEAD = 1024  # likeliest tokens that nearly always reach top_p, and are found much faster than a whole order


def repetition_penalty(logits: Tensor, penalty: Tensor, counts: Tensor) -> Tensor:
    """Logits of tokens with counts > 0 are divided by `penalty` [S] if positive, else multiplied (arXiv 1909.05858)."""
    strength = penalty[:, None]
    penalised = torch.where(logits > 0, logits / strength, logits * strength)
    return torch.where(counts > 0, penalised, logits)


def temperature(logits: Tensor, t: Tensor) -> Tensor:
    """Logits over `t` [S]; 0 is the limit, where the likeliest token alone remains (the first of equals)."""
    best = logits.argmax(-1, keepdim=True)
    above = logits - logits.gather(1, best)  # at most 0, so that no t, however small, overflows
    scaled = above / torch.where(t > 0, t, 1)[:, None]
    only_best = torch.full_like(logits, -math.inf).scatter(1, best, 0)
    hot = torch.where((t == 1)[:, None], logits, scaled)
    return torch.where((t == 0)[:, None], only_best, hot)


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the `k` [S] likeliest tokens, and all that equal the last of them; 0 keeps everything."""
    most = min(int(k.max()), logits.shape[-1])
    ranked = logits.topk(most).values
    last = ranked.gather(1, (k.long().clamp(1, most) - 1)[:, None])
    return logits.masked_fill((logits < last) & (k > 0)[:, None], -math.inf)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p` [S] (nucleus, arXiv 1904.09751)."""
    probs = logits.softmax(-1)
    ranked, order = probs.topk(min(NUCLEUS_HEAD, logits.shape[-1]))
    if ((ranked.sum(-1) < p) & (p < 1)).any():
        ranked, order = probs.sort(descending=True)
    likelier = ranked.cumsum(-1) - ranked  # probability of all tokens before this one
    inside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, likelier < p[:, None])
    return logits.masked_fill(~(inside | (p == 1)[:, None]), -math.inf)


def min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Drop tokens less likely than `p` [S] times the likeliest (arXiv 2407.01082)."""
    least = logits.amax(-1) + p.log()
    return logits.masked_fill(logits < least[:, None], -math.inf)


@dataclass(frozen=True)
class Penalty:
    """A change of logits by how often each token stands in the text so far."""

    apply: Callable[[Tensor, Tensor, Tensor], Tensor]  # logits [S, V], parameter [S], counts [S, V] -> [S, V]
    neutral: float


@dataclass(frozen=True)
class Filter:
    """A change of logits that looks at nothing else."""

    apply: Callable[[Tensor, Tensor], Tensor]  # logits [S, V], parameter [S] -> [S, V]
    neutral: float


# By the name of their field in SamplingParams, in order of application.
PENALTIES = {"repetition_penalty": Penalty(repetition_penalty, 1)}
FILTERS = {
    "temperature": Filter(temperature, 1),
    "top_k": Filter(top_k, 0),
    "top_p": Filter(top_p, 1),
    "min_p": Filter(min_p, 0),
}


def sample(
    logits: Tensor, params: Sequence[SamplingParams], texts: Sequence[Sequence[int]], uniforms: Sequence[float]
) -> Tensor:
    """logits [S, V] fp32, and a sequence's parameters, its tokens so far, and a number of [0, 1) -> tokens [S]."""
    _check_finite(logits, texts)
    return draw(filtered(logits, params, texts), torch.tensor(uniforms, device=logits.device))


def filtered(logits: Tensor, params: Sequence[SamplingParams], texts: Sequence[Sequence[int]]) -> Tensor:
    """logits [S, V] after all penalties and filters."""
    for name, penalty in PENALTIES.items():
        values = _parameter(name, params, penalty.neutral, logits)
        if values is not None:
            logits = penalty.apply(logits, values, _counts(texts, logits))
    for name, filter_ in FILTERS.items():
        values = _parameter(name, params, filter_.neutral, logits)
        if values is not None:
            logits = filter_.apply(logits, values)
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution of softmax(logits) at `uniforms` [S] of [0, 1): [S]. Never a dropped token.

    The numbers come from outside, so that a sequence's randomness depends on neither its batch nor its device.
    """
    probs = logits.softmax(-1)
    reached = torch.where(probs > 0, probs.cumsum(-1), 0)
    return (reached > (uniforms * reached.amax(-1))[:, None]).int().argmax(-1)


def _parameter(name: str, params: Sequence[SamplingParams], neutral: float, logits: Tensor) -> Tensor | None:
    """The parameter of every row, [S]; None where all are neutral."""
    values = [float(getattr(row, name)) for row in params]
    if all(value == neutral for value in values):
        return None
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)


def _counts(texts: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """How often each token occurs in each text, [S, V]."""
    size = logits.shape[-1]
    rows = [torch.tensor(text, dtype=torch.int64).bincount(minlength=size)[:size] for text in texts]
    return torch.stack(rows).to(logits.device)


def _check_finite(logits: Tensor, texts: Sequence[Sequence[int]]) -> None:
    finite = logits.amax(-1).isfinite()  # a maximum carries NaN along
    if not finite.all():
        row = int(finite.int().argmin())
        count = int(logits[row].isnan().sum())
        found = (
            f"NaN in {count} of {logits.shape[-1]} logits" if count else f"a largest logit of {logits[row].amax():g}"
        )
        raise KernelError(
            f"the model gave {found} after {len(texts[row])} tokens, expected finite numbers; "
            "the weights are damaged or overflow: check the files, or load with dtype='float32'"
        )
