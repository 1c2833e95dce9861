"""Logits to tokens: pure functions over a batch on the device that holds the logits, one state for each request."""

from polybit.generator.sampling.report import Drawn, Report
from polybit.generator.sampling.sampler import UNUSABLE, Sampled, distributions, sample, unusable
from polybit.generator.sampling.state import SamplingState

__all__ = ["UNUSABLE", "Drawn", "Report", "Sampled", "SamplingState", "distributions", "sample", "unusable"]
