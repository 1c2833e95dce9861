"""What comes back for a row: its token, and what its request wanted to know about it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

Ranked = tuple[tuple[int, float], ...]  # tokens and their natural log probabilities, likeliest first


@dataclass(frozen=True)
class Report:
    """Log probabilities, in the model's own distribution and in the one that was drawn from."""

    model_logprob: float
    logprob: float
    model_likeliest: Ranked
    likeliest: Ranked
    surprise: float | None = None  # in bits, where mirostat steers by it
    logits: Tensor | None = field(default=None, compare=False, repr=False)  # [V] of the model, on the host, on request


class Drawn(NamedTuple):
    token: int
    report: Report | None = None
