"""Products of nine rows and more straight from the stream, all in one reading: builds of `exl2_batch`, and launches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.launch import Kernel, shared_memory
from polybit.kernels.cuda.schedule import Schedule, Shape, Warps, make_schedule
from polybit.kernels.cuda.stream import HEADER_BYTES
from polybit.kernels.cuda.streamed import Streamed
from polybit.kernels.cuda.workspace import workspace

LEAST_ROWS, MOST_ROWS = 9, 64
BLOCKS = 2  # thread blocks of a multiprocessor
MAX_BLOCKS = 2  # of 32 rows in a chunk
STATIC_BYTES = 2048  # shared memory that the kernel declares itself, and what the driver keeps
UNIT_BYTES = 16  # that a Run's source counts in
TILE_BYTES = 2048 + MAX_BLOCKS * HEADER_BYTES  # of a chunk


@dataclass(frozen=True)
class Form:
    """A build of the kernel, by how many rows it takes."""

    row_tiles: int  # NT, of 8 rows
    warps: int  # of a thread block, each with a tile of 64 columns
    stages: int  # chunks in shared memory

    @property
    def most_rows(self) -> int:
        return 8 * self.row_tiles

    @property
    def stage_bytes(self) -> int:
        return self.warps * TILE_BYTES + 64 * self.most_rows * MAX_BLOCKS

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_bytes

    @property
    def build(self) -> Build:
        macros = {"NT": self.row_tiles, "WARPS": self.warps, "STAGES": self.stages, "BLOCKS": BLOCKS}
        return Build.of("exl2_batch.cu", macros)


FORMS = (Form(2, warps=8, stages=4), Form(4, warps=8, stages=4), Form(8, warps=4, stages=3))


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
    return LEAST_ROWS <= num_rows <= MOST_ROWS and matrix.dtype == torch.float16


def launch(x: Tensor, matrix: Streamed, residual: Tensor | None, out: Tensor) -> None:
    """x as `activations.cu` leaves it where PLAIN; out [T, N] = residual + x W, fp16 or fp32."""
    num_rows, device = out.shape[0], out.device
    form = form_for(num_rows, shared_memory(device.index))
    plan = _plan(form, matrix.shapes, matrix.input.row_blocks, device)
    sums, is_float = workspace(device).sums, int(out.dtype == torch.float32)
    Kernel.get(form.build, "exl2_batch", device).launch(
        (plan.num_blocks,), 32 * form.warps, matrix.stream, plan.runs, plan.tiles, plan.matrices, len(plan.matrices),
        matrix.maxima, x, out, residual, sums, plan.runs.shape[1], plan.tiles.shape[1], num_rows, out.shape[1],
        is_float, shared_bytes=form.shared_bytes, overlap=True,
    )  # fmt: skip
    if len(plan.shared_tiles):
        Kernel.get(form.build, "exl2_add_parts", device).launch(
            (len(plan.shared_tiles), form.warps, 4), 32 * form.row_tiles, plan.shared_tiles, sums, out, residual,
            num_rows, out.shape[1], is_float, overlap=True,
        )  # fmt: skip


def form_for(num_rows: int, shared_limit: int) -> Form:
    """As many chunks under way as fit into `shared_limit` bytes."""
    form = next(form for form in FORMS if num_rows <= form.most_rows)
    return replace(form, stages=min(form.stages, (shared_limit - STATIC_BYTES) // form.stage_bytes))


@cache
def _plan(form: Form, shapes: tuple[Shape, ...], row_blocks: tuple[int, ...], device: torch.device) -> Plan:
    properties = torch.cuda.get_device_properties(device)
    together = max(1, min(BLOCKS, shared_memory(device.index) // form.shared_bytes))
    num_blocks, no_groups = together * properties.multi_processor_count, [0] * len(shapes)
    schedule = make_schedule(shapes, row_blocks, no_groups, Warps(1, MAX_BLOCKS), num_blocks, form.warps)
    tables = (schedule.runs[:, 0], schedule.tiles, shared_tiles(schedule), matrix_table(shapes))
    runs, tiles, shared, matrices = (torch.from_numpy(table.view(np.int32)).to(device) for table in tables)
    return Plan(len(schedule.runs), runs, tiles, shared, matrices)


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
