"""Hooks in Settings.post_sampling_hooks: they see each token before anyone else, and may replace it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exllamav2.generator.filtering import Together
from exllamav2.generator.reports import tables
from polybit.errors import RequestError
from polybit.generator.sampling import Drawn

NUM_CANDIDATES = 100  # likeliest tokens that hooks are shown


@dataclass
class ExLlamaV2PostSamplingResult:
    """What was drawn. A hook may put another token, [1, 1], in its place."""

    sampled_token: Tensor  # [1, 1]
    sampled_prob: Tensor  # [1, 1]
    candidate_tokens: Tensor  # [1, 1, k], likeliest first
    candidate_probs: Tensor  # [1, 1, k]; 0 for tokens that could not be drawn
    logits: Tensor  # [1, 1, V]
    feed_filters: bool = True  # whether filters are told of the token


class ExLlamaV2PostSamplingHook:
    """To subclass; any callable will do."""

    def __call__(self, results: ExLlamaV2PostSamplingResult) -> None:
        raise NotImplementedError


Hook = Callable[[ExLlamaV2PostSamplingResult], Any]


def last_word(hooks: Sequence[Hook], together: Together | None) -> Callable[[Drawn], int]:
    """All hooks, one after another, as polybit asks: the token that is to stand there."""

    def revise(drawn: Drawn) -> int:
        assert drawn.report is not None
        assert drawn.report.logits is not None
        probs, candidates, candidate_probs = tables([drawn.report], NUM_CANDIDATES)
        result = ExLlamaV2PostSamplingResult(
            sampled_token=torch.tensor([[drawn.token]]),
            sampled_prob=probs,
            candidate_tokens=candidates,
            candidate_probs=candidate_probs,
            logits=drawn.report.logits[None, None],
        )
        for hook in hooks:
            hook(result)
        if together is not None:
            together.feeds_next = result.feed_filters
        return _only(result.sampled_token)

    return revise


def _only(token: Any) -> int:
    if not isinstance(token, int | Tensor) or (isinstance(token, Tensor) and token.numel() != 1):
        raise RequestError(f"a post-sampling hook left sampled_token={token!r:.60}, expected one token id, [1, 1]")
    return int(token)
