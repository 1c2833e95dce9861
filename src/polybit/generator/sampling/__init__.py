"""Logits to tokens: pure functions over a batch on the device that holds the logits, one state for each request."""

from polybit.generator.sampling.rejection import Guess
from polybit.generator.sampling.report import Drawn, Report
from polybit.generator.sampling.sampler import UNUSABLE, Sampled, distributions, propose, sample, unusable
from polybit.generator.sampling.state import SamplingState

__all__ = [
    "UNUSABLE",
    "Drawn",
    "Guess",
    "Report",
    "Sampled",
    "SamplingState",
    "distributions",
    "propose",
    "sample",
    "unusable",
]
