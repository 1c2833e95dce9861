"""What is told of tokens, as tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polybit.generator.sampling import Report


def tables(reports: Sequence[Report], num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n tokens' probabilities [1, n]; the likeliest tokens at each place and theirs, both [1, n, k].

    Of the distribution that was drawn from: tokens that it does not have are 0 and have 0.
    """
    probs = torch.tensor([[report.logprob for report in reports]]).exp()
    rows = [[*report.likeliest, *[(0, -math.inf)] * num_top][:num_top] for report in reports]
    shape = (1, len(rows), num_top)
    tokens = torch.tensor([token for row in rows for token, _ in row], dtype=torch.int64).view(shape)
    top_probs = torch.tensor([logprob for row in rows for _, logprob in row]).exp().view(shape)
    return probs, tokens, top_probs


def all_logits(reports: Sequence[Report]) -> Tensor:
    """[1, n, V], as the model gave them."""
    rows = [report.logits for report in reports if report.logits is not None]
    return torch.stack(rows)[None]
