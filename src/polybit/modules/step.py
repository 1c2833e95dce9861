"""One forward pass over a batch, as data, and what attention needs of a K/V store. Managing pages is not here."""

from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The tokens of S sequences, one after another, and where their keys and values go.

    query_starts and lengths live on the CPU: they steer loops and grids. The rest lives on the model's device.
    """

    positions: Tensor  # [T] int64, of each token in its own sequence
    slots: Tensor  # [T] int64, page * P + offset: where each token's key and value are written
    page_table: Tensor  # [S, M] int64, pages of each sequence in order; the rest of a row is 0
    query_starts: Tensor  # [S + 1] int64, CPU
    lengths: Tensor  # [S] int64, CPU: tokens of each sequence once this step is written

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    def to(self, device: torch.device) -> "Step":
        """The step for blocks on another device; what does not lie with `positions` stays where it is."""
        home = self.positions.device
        if home == device:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor) and value.device == home
        }
        return replace(self, **moved)


class KVStore(Protocol):
    """Keys and values of every layer, in pages of P tokens."""

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        """Store k and v [T, Hkv, D] of this step's tokens at step.slots."""

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """k_pages and v_pages, each [pages, P, Hkv, D]."""


class Scratch:
    """The trivial store of a pass that keeps nothing: one page a sequence, alive for one attention call."""

    def __init__(self, rows: int, length: int) -> None:
        self._shape = (rows, length)
        self._held: tuple[Tensor, Tensor] | None = None

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        rows, length = self._shape
        self._held = (k.view(rows, length, *k.shape[1:]), v.view(rows, length, *v.shape[1:]))

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        assert self._held is not None
        return self._held


def whole_rows(rows: int, length: int, device: torch.device) -> tuple[Step, Scratch]:
    """A step over `rows` fresh sequences of `length` tokens each, and the store that goes with it."""
    step = Step(
        positions=torch.arange(length, device=device).repeat(rows),
        slots=torch.arange(rows * length, device=device),
        page_table=torch.arange(rows, device=device)[:, None],
        query_starts=torch.arange(rows + 1) * length,
        lengths=torch.full((rows,), length),
    )
    return step, Scratch(rows, length)
