"""Products of few rows straight from the stream: which build of `exl2_decode` for how many rows, and its launch.

More than eight rows of fp16 are `batch.py`'s, where a row fits its shared memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from polybit.errors import KernelError
from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.launch import Argument, Kernel, shared_memory
from polybit.kernels.cuda.schedule import MAX_TILES, Schedule, Shape, Warps, make_schedule
from polybit.kernels.cuda.stream import TILE_COLUMNS
from polybit.kernels.cuda.streamed import Streamed, outputs
from polybit.kernels.cuda.workspace import ROWS_AT_ONCE, workspace
from polybit.spec import Activation

MAX_ROWS = 64  # more rows are better served by dequantizing

WEIGHT_BYTES = 2176  # of a chunk in the ring
SLOTS = 2  # chunks of a warp's ring
SUM_BYTES = 4 * (TILE_COLUMNS + 4)  # of a row's sums over one tile
VECTOR_BYTES = 16
STATIC_BYTES = 6144  # shared memory that the kernel declares itself, and what the driver keeps
KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
ACTIVATIONS = (Activation.SILU, Activation.GELU, Activation.GELU_TANH, Activation.RELU)


@dataclass(frozen=True)
class Form:
    """A build of the kernel, by how many rows it takes."""

    row_tiles: int  # NT, of 8 rows
    one: bool
    most_warps: int

    @property
    def max_chunk(self) -> int:
        """Blocks of 32 rows: MAX_BLOCKS in the kernel."""
        return 4 if self.row_tiles == 1 else 2

    @property
    def slot_bytes(self) -> int:
        rows = self.most_rows
        return WEIGHT_BYTES + (64 * rows + (16 if self.one else 8 * rows)) * self.max_chunk

    @property
    def most_rows(self) -> int:
        return 1 if self.one else 8 * self.row_tiles

    def shared_bytes(self, warps: int, num_sums: int) -> int:
        """Of a thread block: its warps' rings, and their sums."""
        return warps * SLOTS * self.slot_bytes + num_sums * self.most_rows * SUM_BYTES

    def build(self, warps: int) -> Build:
        macros = {"NT": self.row_tiles, "ONE": int(self.one), "WARPS": warps, "SLOTS": SLOTS, "MAX_TILES": MAX_TILES}
        return Build.of("exl2_decode.cu", macros)


def form_for(rows: int) -> Form:
    """No more warps than leave registers for the launch that sorts the next product's activations."""
    return Form(1, rows == 1, 12) if rows <= 8 else Form(2, False, 8)


@dataclass(frozen=True, eq=False)
class Plan:
    """One launch, ready but for its tensors."""

    warps: int
    num_blocks: int
    shared_bytes: int
    runs: Tensor
    tiles: Tensor
    num_slots: int  # of partial sums


Sort = Callable[[slice], Tensor]  # some rows of the activations -> as the kernel reads them


def multiply(x: Tensor, matrix: Streamed, residual: Tensor | None = None) -> Tensor:
    """x [T, K], T at most MAX_ROWS -> residual + x W [T, N] in x's dtype, or in the residual's."""
    dtype = x.dtype if residual is None else residual.dtype
    x = aligned(x)

    def sort(rows: slice) -> Tensor:
        return _sort("sort_rows", matrix, x[rows], x.stride(0))

    return _multiply(len(x), matrix, dtype, residual, sort)


def norm_multiply(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Streamed) -> Tensor:
    """As multiply of rms_norm(x), without rounding between; in the matrix's dtype."""
    x = aligned(x)
    numbers = np.float32(eps), np.float32(offset)

    def sort(rows: slice) -> Tensor:
        return _sort("norm_sort_rows", matrix, x[rows], x.stride(0), weight, x.shape[1], *numbers, kind=weight.dtype)

    return _multiply(len(x), matrix, matrix.dtype, None, sort)


def gated_multiply(
    gate: Tensor, up: Tensor, activation: Activation, matrix: Streamed, residual: Tensor | None
) -> Tensor:
    """As multiply of act(gate) * up, without rounding between."""
    gate, up = aligned(gate), aligned(up)
    dtype = gate.dtype if residual is None else residual.dtype

    def sort(rows: slice) -> Tensor:
        strides, number = (gate.stride(0), up.stride(0)), ACTIVATIONS.index(activation)
        return _sort("gated_sort_rows", matrix, gate[rows], strides[0], up[rows], strides[1], number)

    return _multiply(len(gate), matrix, dtype, residual, sort)


def aligned(x: Tensor) -> Tensor:
    """Rows that can be read 16 bytes at a time."""
    starts = (x.data_ptr(), *(stride * x.itemsize for stride in x.stride()[:-1]))
    whole = x.stride(-1) == 1 and all(start % VECTOR_BYTES == 0 for start in starts)
    return x if whole else x.clone(memory_format=torch.contiguous_format)


def _multiply(num_rows: int, matrix: Streamed, dtype: torch.dtype, residual: Tensor | None, sort: Sort) -> Tensor:
    out = outputs(num_rows, matrix, dtype)
    if residual is not None:
        residual = residual.to(out.dtype).contiguous()
    for start in range(0, num_rows, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        _launch(sort(rows), matrix, None if residual is None else residual[rows], out[rows])
    return out.to(dtype)


def _launch(x: Tensor, matrix: Streamed, residual: Tensor | None, out: Tensor) -> None:
    num_rows, given, device = out.shape[0], matrix.input, out.device
    form = form_for(num_rows)
    plan = _plan(form, matrix.shapes, given.row_blocks, given.first_groups, device)
    space = workspace(device)
    exchanges = space.exchanges if plan.num_slots <= len(space.exchanges) else None
    Kernel.get(form.build(plan.warps), "exl2_decode", device).launch(
        (plan.num_blocks,), 32 * plan.warps, matrix.stream, plan.runs, plan.tiles, matrix.maxima, x, out, residual,
        space.sums, space.counters, exchanges, plan.runs.shape[-2], plan.tiles.shape[1], num_rows, out.shape[1],
        int(out.dtype == torch.float32), shared_bytes=plan.shared_bytes, overlap=True,
    )  # fmt: skip


def _sort(name: str, matrix: Streamed, x: Tensor, *arguments: Argument, kind: torch.dtype = torch.float16) -> Tensor:
    """The activations that kernel `name` of `activations.cu` makes of x [T, K], sorted for `matrix`."""
    given, num_rows = matrix.input, x.shape[0]
    out = torch.empty(given.num_bytes(num_rows), dtype=torch.uint8, device=x.device)
    Kernel.get(activations(x.dtype, kind), name, x.device).launch(
        (-(-given.num_groups // 8), num_rows), 128, given.order, given.groups, out, given.num_groups, num_rows, x,
        *arguments, overlap=True,
    )  # fmt: skip
    return out


def activations(dtype: torch.dtype, weight_dtype: torch.dtype) -> Build:
    return Build.of("activations.cu", {"IN": KINDS[dtype], "WEIGHT": KINDS[weight_dtype]})


@cache
def _plan(
    form: Form, shapes: tuple[Shape, ...], row_blocks: tuple[int, ...], first_groups: tuple[int, ...],
    device: torch.device,
) -> Plan:  # fmt: skip
    """The fewest thread blocks, and then the most warps, whose rings and sums fit into shared memory."""
    properties = torch.cuda.get_device_properties(device)
    limit, num_places = _shared_limit(device), len(workspace(device).counters)
    found = choose(form, shapes, row_blocks, first_groups, properties.multi_processor_count, limit, num_places)
    if found is None:
        raise KernelError(
            f"no launch of the CUDA kernels for matrices of {shapes[0].in_features} x "
            f"{'+'.join(str(shape.out_features) for shape in shapes)} fits {properties.name} ({limit} bytes of shared "
            "memory a thread block); use backend='triton'"
        )
    warps, schedule = found
    runs, tiles = (torch.from_numpy(table.view(np.int32)).to(device) for table in (schedule.runs, schedule.tiles))
    return Plan(warps, len(schedule.runs), form.shared_bytes(warps, schedule.num_sums), runs, tiles, schedule.num_slots)


def choose(
    form: Form, shapes: tuple[Shape, ...], row_blocks: tuple[int, ...], first_groups: tuple[int, ...],
    num_processors: int, shared_limit: int, num_places: int,
) -> tuple[int, Schedule] | None:  # fmt: skip
    """Warps of a thread block, and the schedule; None where nothing fits.

    num_processors: of the card; shared_limit: bytes of shared memory a thread block; num_places: for partial sums.
    """
    for waves in (1, 2, 4, 8, 16, 32, 64):
        for warps in (16, 12, 8, 6, 4, 2, 1):
            # A thread block has no fewer sums than warps with work, and no fewer than its share of the tiles.
            least = max(1, sum(shape.num_tiles for shape in shapes) // (waves * num_processors))
            if warps > form.most_warps or form.shared_bytes(warps, least) > shared_limit:
                continue
            split = Warps(warps, form.max_chunk)
            schedule = make_schedule(shapes, row_blocks, first_groups, split, waves * num_processors)
            fits = form.shared_bytes(warps, schedule.num_sums) <= shared_limit and schedule.num_slots <= num_places
            if fits and schedule.fits_tables:
                return warps, schedule
    return None


def _shared_limit(device: torch.device) -> int:
    """Bytes that a launch may ask for."""
    return shared_memory(device.index) - STATIC_BYTES
