"""Products of nine rows and more straight from the stream, all in one reading: builds of `exl2_batch` and
`exl2_warpgroup`, and launches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels.cuda import gather
from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.launch import Kernel, shared_memory
from polybit.kernels.cuda.schedule import MAX_PARTS, Schedule, Shape, Warps, make_schedule
from polybit.kernels.cuda.stream import HEADER_BYTES, TILE_COLUMNS
from polybit.kernels.cuda.streamed import Streamed, outputs
from polybit.kernels.cuda.workspace import workspace
from polybit.spec import Activation

LEAST_ROWS, MOST_ROWS = 9, 64
STATIC_BYTES = 2048  # shared memory that a kernel declares itself, and what the driver keeps
UNIT_BYTES = 16  # that a Run's source counts in
LEAST_STAGES = 3  # one that is read, and two under way
CHUNK_BYTES = 2048  # of a tile, without scale codes
WARPGROUP_CARD = (9, 0)  # the only compute capability with `wgmma`


@dataclass(frozen=True)
class Batch:
    """A build, by how many rows it takes: what was fastest of those tried (docs/kernel-log.md)."""

    warpgroups: bool  # `exl2_warpgroup.cu`, else `exl2_batch.cu`
    row_tiles: int  # NT, of 8 rows
    warps: int  # of a thread block
    chunk: int  # blocks of 32 rows at most
    stages: int  # chunks in shared memory
    blocks: int  # thread blocks of a multiprocessor
    registers: int = 0  # of a thread of warpgroups

    @property
    def most_rows(self) -> int:
        return 8 * self.row_tiles

    @property
    def warp_columns(self) -> int:
        """Half a tile, or a tile."""
        return TILE_COLUMNS // 2 if self.warpgroups else TILE_COLUMNS

    @property
    def tiles(self) -> int:
        """That a thread block works on side by side."""
        return self.warps * self.warp_columns // TILE_COLUMNS

    @property
    def stage_bytes(self) -> int:
        return self.tiles * (CHUNK_BYTES + self.chunk * HEADER_BYTES) + 64 * self.most_rows * self.chunk

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_bytes

    @property
    def gathered(self) -> gather.Form:
        return gather.Form.CORES if self.warpgroups else gather.Form.BLOCKS

    @property
    def name(self) -> str:
        return "exl2_warpgroup" if self.warpgroups else "exl2_batch"

    @property
    def threads(self) -> int:
        """A warp more brings the chunks of warpgroups."""
        return 32 * (self.warps + self.warpgroups)

    @cached_property
    def build(self) -> Build:
        macros = {"NT": self.row_tiles, "WARPS": self.warps, "STAGES": self.stages, "CHUNK": self.chunk}
        if self.warpgroups:
            return Build.of("exl2_warpgroup.cu", macros | {"REGISTERS": self.registers})
        return Build.of("exl2_batch.cu", macros | {"BLOCKS": self.blocks})


BATCHES = (
    Batch(False, 2, warps=8, chunk=4, stages=3, blocks=2),
    Batch(False, 4, warps=8, chunk=2, stages=4, blocks=2),
    Batch(False, 8, warps=4, chunk=2, stages=3, blocks=2),
)
WARPGROUP_BATCHES = (
    BATCHES[0],
    Batch(True, 4, warps=8, chunk=4, stages=6, blocks=2, registers=96),
    Batch(True, 8, warps=4, chunk=4, stages=5, blocks=2, registers=168),
)


@dataclass(frozen=True, eq=False)
class Plan:
    """One launch, ready but for its tensors."""

    num_blocks: int
    runs: Tensor  # [blocks, runs, 4] int32
    tiles: Tensor  # [blocks, tiles, 4] int32
    shared_tiles: Tensor  # [n, 4] int32: those that several thread blocks have a part of
    matrices: Tensor  # [matrices, 4] int32: first 16 bytes, those of a tile, tiles


def serves(matrix: Streamed, num_rows: int) -> bool:
    """Weights are rounded to fp16, so bf16 models, whose numbers reach further, are not served."""
    device = matrix.stream.device
    fits = LEAST_ROWS <= num_rows <= MOST_ROWS and gather.can_gather(matrix.in_features, device)
    return fits and matrix.dtype == torch.float16


def multiply(x: Tensor, matrix: Streamed, residual: Tensor | None = None) -> Tensor:
    """x [T, K] -> residual + x W [T, N] in x's dtype, or in the residual's."""
    dtype = x.dtype if residual is None else residual.dtype
    batch = batch_for(len(x), x.device)
    sorted_x = gather.gather(x, matrix.input.order, batch.gathered, torch.float16)
    return _multiply(sorted_x, len(x), matrix, dtype, residual, batch)


def norm_multiply(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Streamed) -> Tensor:
    """As multiply of rms_norm(x), rounded once between; in the matrix's dtype."""
    dtype, batch = matrix.dtype, batch_for(len(x), x.device)
    sorted_x = gather.gather_normed(x, weight, eps, offset, dtype, matrix.input.order, batch.gathered)
    return _multiply(sorted_x, len(x), matrix, dtype, None, batch)


def gated_multiply(
    gate: Tensor, up: Tensor, activation: Activation, matrix: Streamed, residual: Tensor | None
) -> Tensor:
    """As multiply of act(gate) * up, rounded once between."""
    dtype = gate.dtype if residual is None else residual.dtype
    batch = batch_for(len(gate), gate.device)
    sorted_x = gather.gather_gated(gate, up, activation, matrix.input.order, batch.gathered, torch.float16)
    return _multiply(sorted_x, len(gate), matrix, dtype, residual, batch)


def _multiply(
    x: Tensor, num_rows: int, matrix: Streamed, dtype: torch.dtype, residual: Tensor | None, batch: Batch
) -> Tensor:
    """x as gathered for that batch"""
    out = outputs(num_rows, matrix, dtype)
    if residual is not None:
        residual = residual.to(out.dtype).contiguous()
    _launch(x, matrix, residual, out, batch)
    return out.to(dtype)


def _launch(x: Tensor, matrix: Streamed, residual: Tensor | None, out: Tensor, batch: Batch) -> None:
    num_rows, device = out.shape[0], out.device
    plan = _plan(batch, matrix.shapes, matrix.input.row_blocks, device)
    sums, is_float = workspace(device).sums, int(out.dtype == torch.float32)
    Kernel.get(batch.build, batch.name, device).launch(
        (plan.num_blocks,), batch.threads, matrix.stream, plan.runs, plan.tiles, plan.matrices, len(plan.matrices),
        matrix.maxima, x, out, residual, sums, plan.runs.shape[1], plan.tiles.shape[1], num_rows, out.shape[1],
        is_float, shared_bytes=batch.shared_bytes, overlap=True,
    )  # fmt: skip
    if len(plan.shared_tiles):
        Kernel.get(batch.build, "exl2_add_parts", device).launch(
            (len(plan.shared_tiles), batch.warps, batch.warp_columns // 16), 32 * batch.row_tiles, plan.shared_tiles,
            sums, out, residual, num_rows, out.shape[1], is_float, overlap=True,
        )  # fmt: skip


@cache
def batch_for(num_rows: int, device: torch.device) -> Batch:
    has_warpgroups = torch.cuda.get_device_capability(device) == WARPGROUP_CARD
    return choose(num_rows, has_warpgroups, shared_memory(device.index))


def choose(num_rows: int, has_warpgroups: bool, shared_limit: int) -> Batch:
    """As many chunks under way as fit into `shared_limit` bytes, smaller ones where too few large ones do."""
    batches = WARPGROUP_BATCHES if has_warpgroups else BATCHES
    batch = next(batch for batch in batches if num_rows <= batch.most_rows)
    room = shared_limit - STATIC_BYTES
    if room // batch.stage_bytes < LEAST_STAGES:
        batch = replace(batch, chunk=2)
    return replace(batch, stages=min(batch.stages, room // batch.stage_bytes))


@cache
def _plan(batch: Batch, shapes: tuple[Shape, ...], row_blocks: tuple[int, ...], device: torch.device) -> Plan:
    properties = torch.cuda.get_device_properties(device)
    together = max(1, min(batch.blocks, shared_memory(device.index) // batch.shared_bytes))
    schedule = divide(batch, shapes, row_blocks, together * properties.multi_processor_count)
    tables = (schedule.runs[:, 0], schedule.tiles, shared_tiles(schedule), matrix_table(shapes))
    runs, tiles, shared, matrices = (torch.from_numpy(table.view(np.int32)).to(device) for table in tables)
    return Plan(len(schedule.runs), runs, tiles, shared, matrices)


def divide(batch: Batch, shapes: Sequence[Shape], row_blocks: Sequence[int], num_blocks: int) -> Schedule:
    """Among so many thread blocks, or no more than the tables can count as parts of a tile."""
    no_groups, warps = [0] * len(shapes), Warps(1, batch.chunk)
    among = partial(make_schedule, shapes, row_blocks, no_groups, warps, side_by_side=batch.tiles)
    schedule = among(num_blocks)
    return schedule if schedule.most_parts <= MAX_PARTS else among(MAX_PARTS)


def shared_tiles(schedule: Schedule) -> NDArray[np.uint32]:
    """One entry, of whichever thread block, for each tile that several have a part of."""
    entries = schedule.tiles.reshape(-1, 4)
    entries = entries[(entries[:, 1] > 0) & (entries[:, 3] & 0xFF > 1)]
    _, first = np.unique(entries[:, 0], return_index=True)
    return np.ascontiguousarray(entries[first])


def matrix_table(shapes: Sequence[Shape]) -> NDArray[np.uint32]:
    starts = accumulate((shape.num_bytes for shape in shapes), initial=0)
    rows = [
        (start // UNIT_BYTES, shape.layout.tile_bytes // UNIT_BYTES, shape.num_tiles, 0)
        for start, shape in zip(starts, shapes, strict=False)
    ]
    return np.array(rows, np.uint32)
