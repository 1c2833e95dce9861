"""Runs of tokens, each of one sequence, as the tensors of a step."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polybit.cache import PAGE_TOKENS, Holding
from polybit.generator.scheduler import Part
from polybit.modules.step import Step

SPARE_COLUMNS = 8  # pages that every sequence may grow by before the table does


class Run(NamedTuple):
    """Tokens that follow one another, from place `start` of a sequence on, and the pages that it holds."""

    tokens: list[int]
    start: int
    pages: list[int]
    num_wanted: int = 0  # last tokens whose logits are wanted

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


def run_of(part: Part[Holding]) -> Run:
    """The part's tokens and guesses; logits from where a next token follows, and of every guess."""
    sequence, guesses = part.sequence, part.guesses
    start = sequence.num_stored
    stop = start + part.count
    tokens = sequence.tokens[start:stop]
    num_wanted = 1 + len(guesses) if stop == len(sequence.tokens) else 0
    return Run([*tokens, *guesses] if guesses else tokens, start, sequence.pages, num_wanted)


def lay_out(runs: Sequence[Run], device: torch.device) -> tuple[Tensor, Step]:
    """The runs one after another: tokens [T] and the step that places them."""
    places = [range(run.start, run.stop) for run in runs]
    slots = [
        run.pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS
        for run, placed in zip(runs, places, strict=True)
        for place in placed
    ]
    step = Step(
        positions=torch.tensor([place for placed in places for place in placed], device=device),
        slots=torch.tensor(slots, device=device),
        page_table=torch.tensor(_padded([run.pages for run in runs]), dtype=torch.int32, device=device),
        query_starts=torch.tensor([0, *accumulate(map(len, places))], dtype=torch.int32, device=device),
        lengths=torch.tensor([run.stop for run in runs], dtype=torch.int32, device=device),
        max_queries=max(map(len, places)),
        max_length=max(run.stop for run in runs),
    )
    return torch.tensor([token for run in runs for token in run.tokens], device=device), step


def ids_of(tokens: Sequence[int]) -> Tensor:
    """tokens [T] on the host; numpy reads a list in a quarter of torch's time."""
    return torch.from_numpy(np.array(tokens, np.int64))


def wanted_of(runs: Sequence[Run]) -> list[int]:
    """Places in [T] of the tokens whose logits are wanted."""
    stops = accumulate(len(run.tokens) for run in runs)
    return [at for run, stop in zip(runs, stops, strict=True) for at in range(stop - run.num_wanted, stop)]


def _padded(rows: list[list[int]]) -> list[list[int]]:
    """All as long as the longest, by zeros."""
    width = max(map(len, rows))
    return [[*row, *[0] * (width - len(row))] for row in rows]


def onward(step: Step) -> Step | None:
    """A decode step's next one, where everyone gets a token and all stay in their pages; None: someone does not."""
    positions = step.positions + 1
    if not (positions % PAGE_TOKENS).all():
        return None
    return replace(
        step, positions=positions, slots=step.slots + 1, lengths=step.lengths + 1, max_length=step.max_length + 1
    )


class DecodeLayout:
    """`lay_out` for runs of one token, on the host: in time that hardly grows with the pages they have.

    From step to step a sequence's pages seldom change, so rows of the page table are kept, and compared.
    """

    def __init__(self) -> None:
        self._rows: list[list[int]] = []
        self._table = np.zeros((0, 0), dtype=np.int32)

    def __call__(self, runs: Sequence[Run]) -> Step:
        """The step that places them, good until the next call."""
        starts = np.array([run.start for run in runs], np.int64)
        table = self._page_table([run.pages for run in runs])
        pages = table[np.arange(len(runs)), starts // PAGE_TOKENS].astype(np.int64)
        return Step(
            positions=torch.from_numpy(starts),
            slots=torch.from_numpy(pages * PAGE_TOKENS + starts % PAGE_TOKENS),
            page_table=torch.from_numpy(table),
            query_starts=torch.arange(len(runs) + 1, dtype=torch.int32),
            lengths=torch.from_numpy((starts + 1).astype(np.int32)),
            max_queries=1,
            max_length=int(starts.max()) + 1,
        )

    def _page_table(self, rows: list[list[int]]) -> NDArray[np.int32]:
        width = max(map(len, rows))
        if len(rows) > len(self._table) or width > self._table.shape[1]:
            self._table = np.zeros((len(rows), width + SPARE_COLUMNS), dtype=np.int32)
            self._rows = [[] for _ in rows]
        if rows != self._rows[: len(rows)]:  # seldom
            for i, row in enumerate(rows):
                if row != self._rows[i]:
                    self._table[i, : len(row)] = row
                    self._table[i, len(row) :] = 0
                    self._rows[i] = list(row)
        return self._table[: len(rows), :width]
