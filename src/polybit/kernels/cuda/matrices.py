"""EXL2 matrices as CUDA kernels hold them: one stream of bytes for all matrices that share a launch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor
from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.launch import Kernel
from polybit.kernels.cuda.schedule import Schedule, Shape, Warps, make_schedule
from polybit.kernels.cuda.stream import BLOCK_ROWS, StreamLayout, num_tiles, stream_layout

STREAM = Build("exl2_stream.cu")


@dataclass(frozen=True, eq=False)
class SortedInput:
    """How activations are laid out for a launch: one sorted copy for each distinct order and layout of its matrices."""

    order: Tensor  # [sorted rows of all copies] int32: the input feature of each
    groups: Tensor  # [groups of all copies, 2] int32: first row, rows | bits << 16
    row_blocks: tuple[int, ...]  # where each matrix's copy begins, in blocks of 32 rows
    first_groups: tuple[int, ...]  # and in groups

    @property
    def num_rows(self) -> int:
        return self.order.shape[0]

    @property
    def num_groups(self) -> int:
        return self.groups.shape[0]

    def num_bytes(self, num_tokens: int) -> int:
        """Of the sorted activations, as `activations.cu` lays them out."""
        return self.num_groups * (-(-num_tokens // 2) * 16) + 2 * self.num_rows * num_tokens


@dataclass(frozen=True, eq=False)
class Streamed:
    """Matrices whose products are taken in one launch; their outputs follow one another."""

    shapes: tuple[Shape, ...]
    stream: Tensor  # [bytes] uint8
    maxima: Tensor  # [groups + 1] int32: half2 of each group's scale maximum over 256
    input: SortedInput
    tables: dict[Warps, "Tables"] = field(default_factory=dict)

    @property
    def in_features(self) -> int:
        return self.shapes[0].layout.num_blocks * 32

    @property
    def out_features(self) -> int:
        return sum(shape.out_features for shape in self.shapes)

    @property
    def num_bytes(self) -> int:
        return self.stream.nbytes + self.maxima.nbytes

    def dequantize(self, index: int, first_tile: int, stop_tile: int) -> Tensor:
        """Columns of tiles first..stop of one matrix: [columns, K] fp16, rows sorted."""
        shape, device = self.shapes[index], self.stream.device
        layout = shape.layout
        columns = min(64 * stop_tile, shape.out_features) - 64 * first_tile
        out = torch.empty(columns, layout.num_blocks * 32, dtype=torch.float16, device=device)
        start = sum(earlier.num_bytes for earlier in self.shapes[:index])
        group = sum(len(earlier.layout.groups) for earlier in self.shapes[:index])
        blocks = torch.tensor(layout.block_table(), dtype=torch.int64).to(torch.int32).to(device)
        of_block = torch.tensor([i for i, g in enumerate(layout.groups) for _ in range(g.num_blocks)], dtype=torch.int32)
        Kernel(STREAM, "exl2_dequantize", device.index or 0).launch(
            (stop_tile - first_tile, -(-layout.num_blocks // 8)), 256, self.stream[start:], blocks,
            of_block.to(device), self.maxima[group:], out, layout.num_blocks, shape.out_features, out.shape[1],
            first_tile, np.uint64(layout.tile_bytes),
        )  # fmt: skip
        return out


@dataclass(frozen=True, eq=False)
class Tables:
    """A schedule on the device."""

    schedule: Schedule
    runs: Tensor
    tiles: Tensor


def tables_for(streamed: Streamed, warps: Warps, num_blocks: int) -> Tables:
    if warps not in streamed.tables:
        schedule = make_schedule(
            streamed.shapes, streamed.input.row_blocks, streamed.input.first_groups, warps, num_blocks
        )
        runs, tiles = (
            torch.from_numpy(table.view(np.int32)).to(streamed.stream.device)
            for table in (schedule.runs, schedule.tiles)
        )
        streamed.tables[warps] = Tables(schedule, runs, tiles)
    return streamed.tables[warps]


def prepare(tensors: Sequence[Exl2Tensor], prescales: Sequence[float], device: torch.device) -> Streamed:
    """Rearrange matrices that share their input, once. Equal permutations share one sorted copy of it."""
    shapes = tuple(Shape(stream_layout(tensor.layout), tensor.out_features) for tensor in tensors)
    stream = torch.empty(sum(shape.num_bytes for shape in shapes), dtype=torch.uint8, device=device)
    repack = Kernel(STREAM, "exl2_repack", device.index or 0)
    start, maxima, perms = 0, list[Tensor](), list[Tensor]()
    for tensor, prescale, shape in zip(tensors, prescales, shapes, strict=True):
        layout = shape.layout
        blocks = torch.tensor(layout.block_table(), dtype=torch.int64).to(torch.int32).to(device)
        grid = (num_tiles(shape.out_features), -(-layout.num_blocks // 4))
        repack.launch(
            grid, 128, tensor.q_weight.to(device), tensor.q_scale.to(device), None, blocks, stream[start:],
            layout.num_blocks, shape.out_features, np.uint64(layout.tile_bytes),
        )  # fmt: skip
        maxima.append(_maxima(tensor, prescale, [group.source for group in layout.groups]).to(device))
        perms.append(tensor.perm.to(device))
        start += shape.num_bytes
    maxima.append(torch.zeros(1, dtype=torch.int32, device=device))
    return Streamed(shapes, stream, torch.cat(maxima), sorted_input(shapes, perms))


def sorted_input(shapes: Sequence[Shape], perms: Sequence[Tensor]) -> SortedInput:
    copies = list[tuple[StreamLayout, Tensor]]()
    groups, row_blocks, first_groups = list[tuple[int, int]](), list[int](), list[int]()
    for shape, perm in zip(shapes, perms, strict=True):
        layout = shape.layout
        same = next((i for i, copy in enumerate(copies) if copy[0] == layout and torch.equal(copy[1], perm)), None)
        if same is not None:
            row_blocks.append(row_blocks[same])
            first_groups.append(first_groups[same])
            continue
        row = sum(len(copy[1]) for copy in copies)
        row_blocks.append(row // BLOCK_ROWS)
        first_groups.append(len(groups))
        for group, block in zip(layout.groups, layout.block_starts, strict=False):
            groups.append((row + BLOCK_ROWS * block, BLOCK_ROWS * group.num_blocks | group.bits << 16))
        copies.append((layout, perm))
    order = torch.cat([perm for _, perm in copies]).to(torch.int32)
    table = torch.tensor(groups, dtype=torch.int32).to(order.device)
    return SortedInput(order, table, tuple(row_blocks), tuple(first_groups))


def _maxima(tensor: Exl2Tensor, prescale: float, sources: list[int]) -> Tensor:
    """[groups of the stream] int32"""
    factor = torch.tensor(prescale / 256, dtype=torch.float32, device=tensor.q_scale_max.device)
    halves = (tensor.q_scale_max.float() * factor).half()[sources]
    return halves.repeat_interleave(2).view(torch.int32)
