"""One forward pass over a batch, as data, and what attention needs of a K/V store. Managing pages is not here."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from polybit.kernels.pages import KVBits, Pages, new_pages
from polybit.kernels.protocol import Backend


@dataclass(frozen=True)
class Step:
    """The tokens of S sequences, one after another, and where their keys and values go.

    Tensors live on the model's device and nothing in a forward pass reads them on the host, so that a pass can be
    captured once and replayed with other contents. What shapes and grids depend on stands beside them as integers.
    """

    positions: Tensor  # [T] int64, of each token in its own sequence
    slots: Tensor  # [T] int64, page * P + offset: where each token's key and value are written
    page_table: Tensor  # [S, M] int32, pages of each sequence in order; the rest of a row is 0
    query_starts: Tensor  # [S + 1] int32: tokens query_starts[s]:query_starts[s+1] are sequence s's
    lengths: Tensor  # [S] int32: tokens of each sequence once this step is written
    max_queries: int  # no sequence has more tokens in this step
    max_length: int  # no sequence is longer once this step is written

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    def to(self, device: torch.device) -> "Step":
        """The step for blocks on another device."""
        if device == self.positions.device:
            return self
        return replace(
            self,
            positions=self.positions.to(device, non_blocking=True),
            slots=self.slots.to(device, non_blocking=True),
            page_table=self.page_table.to(device, non_blocking=True),
            query_starts=self.query_starts.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
        )


class KVStore(Protocol):
    """Keys and values of every layer, in pages of P tokens."""

    @property
    def is_written_by_ops(self) -> bool:
        """Whether the pages are there before anything is written, so that an op may write them itself."""

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        """Store k and v [T, Hkv, D] of this step's tokens at step.slots."""

    def pages(self, layer: int) -> tuple[Pages, Pages]:
        """k_pages and v_pages, each [pages, P, Hkv, D] and dense."""


class Scratch:
    """The trivial store of a pass that keeps nothing: one page a sequence, alive for one attention call."""

    is_written_by_ops = False

    def __init__(self, rows: int, length: int) -> None:
        self._shape = (rows, length)
        self._held: tuple[Tensor, Tensor] | None = None

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        k, v = (part.view(*self._shape, *part.shape[1:]) for part in (k, v))
        self._held = (k.contiguous(), v.contiguous())  # they may be columns of a joint product

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        assert self._held is not None
        return self._held


class QuantizedScratch:
    """As Scratch, with keys and values as a quantized cache would hold them."""

    is_written_by_ops = False

    def __init__(self, rows: int, length: int, bits: KVBits, backend: Backend) -> None:
        self._shape, self._bits, self._backend = (rows, length), bits, backend
        self._held: tuple[Pages, Pages] | None = None

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        shape = (*self._shape, *k.shape[1:])
        k_pages = new_pages(shape, self._bits.k, k.dtype, k.device)
        v_pages = new_pages(shape, self._bits.v, v.dtype, v.device)
        self._backend.write_kv(k, v, k_pages, v_pages, step.slots)
        self._held = k_pages, v_pages

    def pages(self, layer: int) -> tuple[Pages, Pages]:
        assert self._held is not None
        return self._held


def whole_rows(rows: int, length: int, device: torch.device) -> tuple[Step, Scratch]:
    """A step over `rows` fresh sequences of `length` tokens each, and the store that goes with it."""
    step = Step(
        positions=torch.arange(length, device=device).repeat(rows),
        slots=torch.arange(rows * length, device=device),
        page_table=torch.arange(rows, dtype=torch.int32, device=device)[:, None],
        query_starts=torch.arange(rows + 1, dtype=torch.int32, device=device) * length,
        lengths=torch.full((rows,), length, dtype=torch.int32, device=device),
        max_queries=length,
        max_length=length,
    )
    return step, Scratch(rows, length)
