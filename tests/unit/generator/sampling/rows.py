"""Logits, parameters and states that the tests of the samplers share."""

import torch

from polybit.generator import SamplingParams
from polybit.generator.sampling import SamplingState

VOCABULARY = 50
NEUTRAL = {"temperature": 1.0, "min_p": 0.0, "seed": 0}


def params(**fields):
    """Nothing is on but `fields`."""
    return SamplingParams(**{**NEUTRAL, **fields})


def states(count=1, text=(1, 2, 3), **fields):
    return [SamplingState(params(**fields), text) for _ in range(count)]


def random_logits(rows=3, seed=0, vocabulary=VOCABULARY, scale=3.0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def of_probs(*probs):
    """Logits of one row."""
    return torch.tensor([probs]).log()


def kept(logits):
    return [set(line.isfinite().nonzero().flatten().tolist()) for line in logits]


def chi_square(counts, probs):
    """Pearson's statistic of how often each token came, against the probabilities that it should have had."""
    total = sum(counts.values())
    alive = {token: total * p for token, p in enumerate(probs) if p > 0}
    assert set(counts) <= set(alive), "a token of probability 0 was drawn"
    return sum((counts.get(token, 0) - expected) ** 2 / expected for token, expected in alive.items())
