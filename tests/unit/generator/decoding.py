"""Sequences that decode together, step by step, over a pool of their own; with captured steps or without."""

import math
from pathlib import Path

from torch import Tensor

from polybit.cache import PAGE_TOKENS, KVPool
from polybit.generator import SamplingParams
from polybit.generator.graphs import Capture, DecodeGraphs
from polybit.generator.runner import Runner
from polybit.generator.scheduler import Part, Plan
from polybit.generator.sequence import Sequence
from polybit.model.model import Model
from polybit.text import Tokenizer

VOCABULARY = 272  # a little more than the tokenizer's 260
GREEDY = SamplingParams(temperature=0)
LENGTHS = [PAGE_TOKENS - 4, 3, 1, 2 * PAGE_TOKENS - 20, 40, 100, PAGE_TOKENS, 9]  # of prompts; some end near a page's


class Bench:
    """A runner over a pool in which what nobody wrote is NaN."""

    def __init__(self, model: Model, folder: Path, capture: Capture | None, pages: int = 16, guesses: int = 0) -> None:
        self.pool = KVPool(model.spec, pages * PAGE_TOKENS, model.dtype, model.device, model.backend)
        for layer in range(len(model.spec.blocks)):
            for part in self.pool.pages(layer):
                part.fill_(math.nan)
        graphs = None if capture is None else DecodeGraphs(model, self.pool, capture, guesses)
        self.runner = Runner(model, self.pool, VOCABULARY, graphs)
        self._tokenizer = Tokenizer.open(folder)

    def begin(self, length: int, first: int = 0) -> Sequence:
        """A sequence whose prompt of `length` tokens is stored, and its first token sampled."""
        sequence = self.new(length, first)
        self.run(Part(sequence, length))
        return sequence

    def new(self, length: int, first: int = 0, room: int = 1000) -> Sequence:
        prompt = [(first + 7 * i) % 256 for i in range(length)]
        return Sequence(prompt, GREEDY, frozenset(), self._tokenizer.detokenizer(), room)

    def decode(self, sequences: list[Sequence], steps: int) -> None:
        for _ in range(steps):
            self.run(*(Part(sequence, 1) for sequence in sequences))

    def run(self, *parts: Part[Sequence]) -> None:
        """One step; whoever is ready takes its next token."""
        for part in parts:
            part.sequence.extend(self.pool.book, part.stop)
        for sequence, drawn in self.runner.run(Plan((), parts)):
            sequence.accept_all(drawn)

    def try_out(self, guesses: dict[Sequence, list[int]]) -> Tensor:
        """[T, V]: the logits after the last token of each sequence and after each of its guesses, which do not stay."""
        parts = tuple(Part(sequence, 1, len(guessed), guessed) for sequence, guessed in guesses.items())
        for part in parts:
            part.sequence.extend(self.pool.book, part.stop + part.room)
        logits = self.runner.forward(parts).clone()
        for part in parts:
            part.sequence.num_stored -= 1
        return logits

    def tokens(self, lengths: list[int], steps: int) -> list[tuple[int, ...]]:
        """What sequences of these prompts say, together."""
        sequences = [self.begin(length, first=i) for i, length in enumerate(lengths)]
        self.decode(sequences, steps)
        for sequence in sequences:
            sequence.release(self.pool.book)
        return [sequence.completion().tokens for sequence in sequences]
