"""Generation: sampling parameters, samplers, sequences, and the engine that runs them."""

from polybit.generator.completion import Completion
from polybit.generator.engine import Engine
from polybit.generator.load import load
from polybit.generator.params import SamplingParams
from polybit.generator.stream import Stream

__all__ = ["Completion", "Engine", "SamplingParams", "Stream", "load"]
