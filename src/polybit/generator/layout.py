"""Parts of sequences as the tensors of a step."""

from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polybit.cache import PAGE_TOKENS, Holding
from polybit.generator.scheduler import Part
from polybit.modules.step import Step

SPARE_COLUMNS = 8  # pages that every sequence may grow by before the table does


def lay_out(parts: tuple[Part[Holding], ...], device: torch.device) -> tuple[Tensor, Step]:
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


class DecodeLayout:
    """`lay_out` for steps of one token a sequence, on the host: in time that hardly grows with the pages they have.

    From step to step a sequence's pages seldom change, so rows of the page table are kept, and compared.
    """

    def __init__(self) -> None:
        self._rows: list[list[int]] = []
        self._table = np.zeros((0, 0), dtype=np.int32)

    def __call__(self, sequences: list[Holding]) -> tuple[Tensor, Step]:
        """Their last tokens [S] and the step that places them, good until the next call."""
        tokens = np.array([sequence.tokens[-1] for sequence in sequences], np.int64)
        stored = np.array([sequence.num_stored for sequence in sequences], np.int64)
        table = self._page_table([sequence.pages for sequence in sequences])
        pages = table[np.arange(len(sequences)), stored // PAGE_TOKENS].astype(np.int64)
        step = Step(
            positions=torch.from_numpy(stored),
            slots=torch.from_numpy(pages * PAGE_TOKENS + stored % PAGE_TOKENS),
            page_table=torch.from_numpy(table),
            query_starts=torch.arange(len(sequences) + 1, dtype=torch.int32),
            lengths=torch.from_numpy((stored + 1).astype(np.int32)),
            max_queries=1,
            max_length=int(stored.max()) + 1,
        )
        return torch.from_numpy(tokens), step

    def _page_table(self, rows: list[list[int]]) -> NDArray[np.int32]:
        width = max(map(len, rows))
        if len(rows) > len(self._table) or width > self._table.shape[1]:
            self._table = np.zeros((len(rows), width + SPARE_COLUMNS), dtype=np.int32)
            self._rows = [[] for _ in rows]
        for i, row in enumerate(rows):
            if row != self._rows[i]:
                self._table[i, : len(row)] = row
                self._table[i, len(row) :] = 0
                self._rows[i] = list(row)
        return self._table[: len(rows), :width]
