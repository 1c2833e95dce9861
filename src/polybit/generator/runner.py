"""One forward pass over parts of several sequences, and one token for each that is ready for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.generator.graphs import SIZES, DecodeGraphs
from polybit.generator.sampling import UNUSABLE, Drawn, sample, unusable
from polybit.generator.sequence import Sequence
from polybit.model.model import Model
from polybit.modules.step import Step


@dataclass(frozen=True)
class Part:
    """The next `count` tokens of a sequence that the model has not seen."""

    sequence: Sequence
    count: int

    @property
    def stop(self) -> int:
        """Length of the sequence once this part is stored."""
        return self.sequence.num_stored + self.count

    @property
    def is_last(self) -> bool:
        """Whether a token follows from it."""
        return self.count == self.sequence.num_pending


class Runner:
    """The model and the pool, and graphs for steps of one token a sequence where there are any.

    `vocab_size`: ids from here on are padding of the model's matrices and never sampled.
    """

    def __init__(self, model: Model, pool: KVPool, vocab_size: int, graphs: DecodeGraphs | None = None) -> None:
        self.model = model
        self.pool = pool
        self._vocab_size = vocab_size
        self._graphs = graphs

    def run(self, parts: list[Part]) -> list[Drawn | None]:
        """Store the parts' keys and values; the next token of each sequence, None where more of its prompt is to come.

        Raises OutOfMemory where the pool has too few pages, with nothing stored.
        """
        self._take_pages(parts)
        ready = [i for i, part in enumerate(parts) if part.is_last]
        logits = self.forward(parts)
        sampled: list[Drawn | None] = [None] * len(parts)
        for i, token in zip(ready, self._sample(logits, [parts[i].sequence for i in ready]), strict=True):
            sampled[i] = token
        return sampled

    def release(self, sequence: Sequence) -> None:
        """Give the sequence's pages back; there may be none."""
        self.pool.free.give_back(sequence.pages)
        sequence.pages.clear()

    def forward(self, parts: list[Part]) -> Tensor:
        """Store the parts' keys and values in pages that the sequences have; [n, V] after each part that is a last one.

        The logits are good until the next call.
        """
        logits = self._logits(parts)
        for part in parts:
            part.sequence.num_stored = part.stop
        return logits

    def _logits(self, parts: list[Part]) -> Tensor:
        if self._graphs is not None and _is_decode(parts) and len(parts) <= SIZES[-1]:
            return self._graphs.decode(*lay_out(parts, torch.device("cpu")))
        tokens, step = lay_out(parts, self.model.device)
        stops = accumulate(part.count for part in parts)
        ends = [stop - 1 for stop, part in zip(stops, parts, strict=True) if part.is_last]
        logits_at = torch.tensor(ends, dtype=torch.int64, device=self.model.device)
        return self.model.forward(tokens, step, self.pool, logits_at)

    def _take_pages(self, parts: Iterable[Part]) -> None:
        for part in parts:
            missing = pages_for(part.stop) - len(part.sequence.pages)
            part.sequence.pages += self.pool.free.take(missing)

    @torch.inference_mode()
    def _sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Drawn]:
        if not sequences:
            return []
        known = logits[:, : self._vocab_size]
        drawn = sample(known, [sequence.sampling for sequence in sequences]).drawn()
        for row, (token, _) in enumerate(drawn):
            if token == UNUSABLE:
                raise unusable(known[row], len(sequences[row].tokens))
        return drawn


def _is_decode(parts: Iterable[Part]) -> bool:
    """Whether every sequence has one token left, from which its next one follows."""
    return all(part.count == 1 and part.is_last for part in parts)


def lay_out(parts: list[Part], device: torch.device) -> tuple[Tensor, Step]:
    """The parts one after another: tokens [T] and the step that places them."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for part in parts:
        pages, places = part.sequence.pages, range(part.sequence.num_stored, part.stop)
        tokens += part.sequence.tokens[places.start : places.stop]
        positions += places
        slots += [pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS for place in places]
    step = Step(
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        page_table=torch.tensor(_padded([part.sequence.pages for part in parts]), dtype=torch.int32, device=device),
        query_starts=torch.tensor([0, *accumulate(part.count for part in parts)], dtype=torch.int32, device=device),
        lengths=torch.tensor([part.stop for part in parts], dtype=torch.int32, device=device),
        max_queries=max(part.count for part in parts),
        max_length=max(part.stop for part in parts),
    )
    return torch.tensor(tokens, device=device), step


def _padded(rows: list[list[int]]) -> list[list[int]]:
    """All as long as the longest, by zeros."""
    width = max(map(len, rows))
    return [[*row, *[0] * (width - len(row))] for row in rows]
