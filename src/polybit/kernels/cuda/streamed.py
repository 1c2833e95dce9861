"""EXL2 matrices as CUDA kernels hold them: one stream of bytes for all matrices whose products share a launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polybit.errors import KernelError
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.launch import Kernel
from polybit.kernels.cuda.schedule import MAX_INPUT, Shape
from polybit.kernels.cuda.stream import BLOCK_ROWS, TILE_COLUMNS, StreamLayout, num_tiles, stream_layout

HALF = (torch.float16, torch.bfloat16)  # the kernels round activations to 11 bits
STREAM = Build("exl2_stream.cu")
DENSE = {dtype: Build.of("exl2_dense.cu", {"BFLOAT": int(dtype == torch.bfloat16)}) for dtype in HALF}


@dataclass(frozen=True, eq=False)
class SortedInput:
    """How activations are laid out for a launch: one sorted copy for each distinct order and layout of its matrices."""

    order: Tensor  # [sorted rows of all copies] int32: the input feature of each
    groups: Tensor  # [groups of all copies, 2] int32: first row, rows | bits << 16
    row_blocks: tuple[int, ...]  # where each matrix's copy begins, in blocks of 32 rows
    first_groups: tuple[int, ...]  # and in groups
    spans: tuple[tuple[int, int], ...]  # first and behind the last of matrices in a row that have one order

    @property
    def num_groups(self) -> int:
        return self.groups.shape[0]

    def num_bytes(self, num_tokens: int) -> int:
        """Of the sorted activations, as `activations.cu` lays them out."""
        return self.num_groups * (-(-num_tokens // 2) * 16) + 2 * self.order.shape[0] * num_tokens


class _Source(NamedTuple):
    """What `exl2_dequantize` takes of one matrix, whichever of its columns are wanted."""

    stream: Tensor  # from its first byte on
    table: Tensor
    maxima: Tensor  # from its first group on
    block_programs: int
    num_blocks: int
    tile_bytes: np.uint64

    @classmethod
    def of(cls, shape: Shape, stream: Tensor, maxima: Tensor) -> _Source:
        layout = shape.layout
        table, programs = _dense_table(layout, stream.device), -(-layout.num_blocks // 16)
        return cls(stream, table, maxima, programs, layout.num_blocks, np.uint64(layout.tile_bytes))


@dataclass(frozen=True, eq=False)
class Streamed:
    """Matrices whose products are taken in one launch; their outputs follow one another."""

    shapes: tuple[Shape, ...]
    dtype: torch.dtype  # that they were prepared for
    stream: Tensor  # [bytes] uint8
    maxima: Tensor  # [groups] int32: half2 of each group's scale maximum over 256
    input: SortedInput

    @property
    def in_features(self) -> int:
        return self.shapes[0].in_features

    @property
    def out_features(self) -> int:
        return sum(shape.out_features for shape in self.shapes)

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.stream, self.maxima, self.input.order, self.input.groups))

    def order_of(self, index: int) -> Tensor:
        """[K] int32: the input feature at each sorted row of one matrix."""
        start = BLOCK_ROWS * self.input.row_blocks[index]
        return self.input.order[start : start + self.in_features]

    def dequantize(self, index: int, start: int, stop: int, out: Tensor) -> None:
        """Columns [start, stop) of one matrix to out [stop - start, K], rows sorted; start is a multiple of 64."""
        source, device = self._sources[index], self.stream.device
        Kernel.get(DENSE[out.dtype], "exl2_dequantize", device).launch(
            (source.block_programs, num_tiles(stop - start)), 256, source.stream, source.table, source.maxima, out,
            source.num_blocks, stop, out.stride(0), start // TILE_COLUMNS, source.tile_bytes,
        )  # fmt: skip

    @cached_property
    def _sources(self) -> tuple[_Source, ...]:
        """Of each matrix."""
        bytes_before = accumulate((shape.num_bytes for shape in self.shapes), initial=0)
        groups_before = accumulate((len(shape.layout.groups) for shape in self.shapes), initial=0)
        return tuple(
            _Source.of(shape, self.stream[first_byte:], self.maxima[first_group:])
            for shape, first_byte, first_group in zip(self.shapes, bytes_before, groups_before, strict=False)
        )


def outputs(num_rows: int, matrix: Streamed, dtype: torch.dtype) -> Tensor:
    """Room for [num_rows, N] in a type that kernels write."""
    kernel_dtype = torch.float16 if dtype == torch.float16 else torch.float32
    return torch.empty(num_rows, matrix.out_features, dtype=kernel_dtype, device=matrix.stream.device)


@cache
def _block_table(layout: StreamLayout, device: torch.device) -> Tensor:
    """[blocks, 4] int32"""
    return torch.tensor(layout.block_table(), dtype=torch.int64).to(torch.int32).to(device)


@cache
def _dense_table(layout: StreamLayout, device: torch.device) -> Tensor:
    """[blocks, 4] int32"""
    return torch.tensor(layout.dense_table(), dtype=torch.int64).to(torch.int32).to(device)


def prepare(tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype) -> Streamed:
    """Rearrange one matrix on the device."""
    shape = Shape(stream_layout(tensor.layout), tensor.out_features)
    layout = shape.layout
    stream = torch.empty(shape.num_bytes, dtype=torch.uint8, device=device)
    Kernel.get(STREAM, "exl2_repack", device).launch(
        (shape.num_tiles, -(-layout.num_blocks // 4)), 128, tensor.q_weight.to(device), tensor.q_scale.to(device),
        None, _block_table(layout, device), stream, layout.num_blocks, shape.out_features,
        np.uint64(layout.tile_bytes),
    )  # fmt: skip
    maxima = _maxima(tensor, prescale, [group.source for group in layout.groups]).to(device)
    return Streamed((shape,), dtype, stream, maxima, _sorted_input([(layout, tensor.perm.to(device))]))


def join(matrices: Sequence[Streamed]) -> Streamed:
    """One launch for matrices that share their input."""
    orders = [(shape.layout, matrix.order_of(i)) for matrix in matrices for i, shape in enumerate(matrix.shapes)]
    return Streamed(
        shapes=tuple(shape for matrix in matrices for shape in matrix.shapes),
        dtype=matrices[0].dtype,
        stream=torch.cat([matrix.stream for matrix in matrices]),
        maxima=torch.cat([matrix.maxima for matrix in matrices]),
        input=_sorted_input(orders),
    )


def _maxima(tensor: Exl2Tensor, prescale: float, sources: list[int]) -> Tensor:
    """[groups of the stream] int32"""
    factor = torch.tensor(prescale / 256, dtype=torch.float32, device=tensor.q_scale_max.device)
    halves = (tensor.q_scale_max.float() * factor).half()[sources]
    return halves.repeat_interleave(2).view(torch.int32)


def _sorted_input(orders: Sequence[tuple[StreamLayout, Tensor]]) -> SortedInput:
    copies, places = list[tuple[StreamLayout, Tensor]](), list[int]()
    for layout, order in orders:
        same = (i for i, copy in enumerate(copies) if copy[0] is layout and torch.equal(copy[1], order))
        places.append(next(same, len(copies)))
        if places[-1] == len(copies):
            copies.append((layout, order))
    num_groups = sum(len(layout.groups) for layout, _ in orders)
    if num_groups > MAX_INPUT:
        raise KernelError(
            f"matrices of {num_groups} groups together have more than the CUDA kernels' {MAX_INPUT}; "
            "use backend='triton'"
        )
    rows = list(accumulate((len(order) for _, order in copies), initial=0))
    groups = list(accumulate((len(layout.groups) for layout, _ in copies), initial=0))
    table = [entry for (layout, _), row in zip(copies, rows, strict=False) for entry in _input_groups(layout, row)]
    order = torch.cat([order for _, order in copies]).to(torch.int32)
    return SortedInput(
        order=order,
        groups=torch.tensor(table, dtype=torch.int32).to(order.device),
        row_blocks=tuple(rows[place] // BLOCK_ROWS for place in places),
        first_groups=tuple(groups[place] for place in places),
        spans=_spans([order for _, order in orders]),
    )


def _spans(orders: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Runs of equal orders."""
    starts = [i for i, order in enumerate(orders) if i == 0 or not torch.equal(order, orders[i - 1])]
    return tuple(zip(starts, [*starts[1:], len(orders)], strict=True))


def _input_groups(layout: StreamLayout, first_row: int) -> Iterator[tuple[int, int]]:
    for group, block in zip(layout.groups, layout.block_starts, strict=False):
        yield first_row + BLOCK_ROWS * block, BLOCK_ROWS * group.num_blocks | group.bits << 16
