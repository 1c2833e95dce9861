"""Passes through the model that scripts make themselves, as `ExLlamaV2.forward`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polybit.cache import Holding, KVPool
from polybit.generator.layout import lay_out, run_of
from polybit.generator.scheduler import Part
from polybit.model.footprint import CHUNK_TOKENS
from polybit.model.model import Model
from polybit.modules.step import whole_rows


@dataclass
class OwnRows:
    """The rows of a batch that a script keeps in a cache: pages of the pool, beside those of generators."""

    rows: list[Holding] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens stored of each row."""
        return self.rows[0].num_stored if self.rows else 0

    def truncate(self, length: int, pool: KVPool) -> None:
        """Keep the first tokens; 0 gives the pages back."""
        for row in self.rows:
            row.num_stored = length
            del row.tokens[length:]
        if length == 0:
            for row in self.rows:
                row.discard(pool.book)
            self.rows.clear()

    def extend(self, ids: Tensor, pool: KVPool) -> None:
        """ids [S, n] follow. Raises OutOfMemory where the pool has no room."""
        self.rows = self.rows or [Holding([]) for _ in ids]
        for row in self.rows:
            row.extend(pool.book, len(row.tokens) + ids.shape[1])
        for row, tokens in zip(self.rows, ids.tolist(), strict=True):
            row.tokens += tokens


def chunks(ids: Tensor, abort_event: threading.Event | None) -> Iterator[Tensor]:
    """ids [S, n] in pieces that memory is planned for; no more once the event is set."""
    for chunk in ids.split(max(1, CHUNK_TOKENS // len(ids)), dim=1):
        if abort_event is not None and abort_event.is_set():
            return
        yield chunk


def pass_over(model: Model, ids: Tensor, own: OwnRows, pool: KVPool, num_logits: int) -> Tensor:
    """ids [S, n] after what `own` has; the logits [S, num_logits, V] of the last of them."""
    own.extend(ids, pool)
    count = ids.shape[1]
    tokens, step = lay_out([run_of(Part(row, count)) for row in own.rows], model.device)
    logits = model.forward(tokens, step, pool, _last(len(ids), count, num_logits, model.device))
    for row in own.rows:
        row.num_stored += count
    return logits.view(len(ids), num_logits, logits.shape[1])


def pass_alone(model: Model, ids: Tensor, num_logits: int) -> Tensor:
    """As `pass_over`, of fresh rows that nothing is kept of."""
    rows, count = ids.shape
    step, store = whole_rows(rows, count, model.device)
    tokens = ids.flatten().to(model.device)
    logits = model.forward(tokens, step, store, _last(rows, count, num_logits, model.device))
    return logits.view(rows, num_logits, logits.shape[1])


def _last(rows: int, count: int, num_logits: int, device: torch.device) -> Tensor:
    places = torch.arange(rows * count, device=device).view(rows, count)
    return places[:, count - num_logits :].flatten()
