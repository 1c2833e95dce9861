"""Products of a few rows that follow one another, as one launch of `exl2_chain.cu`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.decode import (
    ACTIVATIONS,
    KINDS,
    ROWS_AT_ONCE,
    STATIC_BYTES,
    WEIGHT_BYTES,
    Form,
    Workspace,
    form_for,
    workspace,
)
from polybit.kernels.cuda.launch import Kernel, shared_memory
from polybit.kernels.cuda.schedule import Schedule, Warps, make_schedule
from polybit.kernels.cuda.streamed import SortedInput, Streamed
from polybit.kernels.protocol import Gate, Link, Norm

WARPS = (12, 8)  # of a thread block, by preference
SLOTS = (3, 2)  # chunks of a warp's ring; more would have the first bytes wait behind the last
MAX_LINKS = 8
MAX_FEATURES = 1 << 16
COLUMN_STEP = 32  # outputs of a matrix are a multiple of that
SORT, NORM, GATE = range(3)  # how a link starts
POINTERS = ("order", "groups", "whole", "weight", "bias", "columns")
LINK = np.dtype(
    [(name, np.uint64) for name in ("stream", "runs", "tiles", "maxima")]
    + [(name, np.uint32) for name in ("num_runs", "num_tiles")]
    + [(name, np.uint64) for name in POINTERS]
    + [(name, np.uint32) for name in ("whole_bytes", "num_maxima", "num_groups", "counted_groups", "input_bytes")]
    + [(name, np.uint32) for name in ("start", "activation", "width")]
    + [(name, np.float32) for name in ("eps", "offset")]
    + [("outputs", np.uint32), ("padding", np.uint32, 3)]
)  # as Link in exl2_chain.cu


@dataclass(frozen=True, eq=False)
class Tables:
    """What a launch for some numbers of rows reads, and how it is made."""

    form: Form
    warps: int
    slots: int
    shared_bytes: int
    room: tuple[int, int, int, int]  # the most runs of a warp, tiles and maxima of a thread block, sums of warps
    links: Tensor  # [links * LINK.itemsize] uint8
    held: tuple[Tensor, ...]  # what `links` points to


@dataclass(frozen=True, eq=False)
class Chain:
    """Links of `protocol.Link` with streamed matrices, called with up to `max_rows` rows."""

    links: tuple[Link, ...]
    matrices: tuple[Streamed, ...]
    max_rows: int = ROWS_AT_ONCE
    _tables: dict[Form, Tables] = field(default_factory=dict)

    def __call__(self, first: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """first [T, K] fp16, x [T, E] -> x with all that was added, and the last link's output [T, N]."""
        num_rows, device, last = len(x), x.device, self.links[-1]
        tables, space = self._tables[form_for(num_rows)], workspace(device)
        x = x.contiguous()
        streams = x.new_empty(sum(link.adds for link in self.links), *x.shape)
        out = streams[-1] if last.adds else x.new_empty(num_rows, self.matrices[-1].out_features, dtype=torch.float16)
        build = Build.of("exl2_chain.cu", tables.form.macros(tables.warps, tables.slots) | {"RESIDUAL": KINDS[x.dtype]})
        Kernel.get(build, "exl2_chain", device).launch(
            (num_processors(device),), 32 * tables.warps, tables.links, len(self.links), first.contiguous(), x, streams,
            out, int(last.adds), *_sorted_room(self.matrices, num_rows, device), *_halves(space), space.counters,
            space.meeting, num_rows, *tables.room, shared_bytes=tables.shared_bytes, together=True,
        )  # fmt: skip
        return (streams[-1] if len(streams) else x), out


def _sorted_room(matrices: Sequence[Streamed], num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For any link's sorted input, and for its groups' sums of squares."""
    sorted_bytes = max(matrix.input.num_bytes(num_rows) for matrix in matrices)
    groups = num_rows * max(matrix.input.num_groups for matrix in matrices)
    return torch.empty(sorted_bytes, dtype=torch.uint8, device=device), torch.empty(groups, device=device)


def _halves(space: Workspace) -> tuple[Tensor, Tensor]:
    """For parts of even and of odd links."""
    half = len(space.sums) // 2
    return space.sums[:half], space.sums[half:]


def chain(links: Sequence[Link]) -> Chain | None:
    """None where a matrix is not streamed, links or types are not what the kernel has, or no launch fits the card."""
    matrices = [link.matrix for link in links if isinstance(link.matrix, Streamed)]
    if len(matrices) < len(links) or not _is_served(links, matrices):
        return None
    made = Chain(tuple(links), tuple(matrices))
    for rows in (1, 8, 16):
        tables = _tables(made, form_for(rows))
        if tables is None:
            return None
        made._tables[tables.form] = tables
    return made


def _is_served(links: Sequence[Link], matrices: Sequence[Streamed]) -> bool:
    norms = [link.start.weight for link in links if isinstance(link.start, Norm)]
    vectors = norms + [link.bias for link in links if link.bias is not None]
    # What is added is added up by the norm that reads it.
    follow = all(a.adds == isinstance(b.start, Norm) for a, b in pairwise(links))
    return (
        len(links) <= MAX_LINKS
        and follow
        and not any(link.adds and isinstance(link.start, Norm) for link in links)
        and all(vector.dtype == torch.float16 and vector.dim() == 1 for vector in vectors)
        and all(matrix.dtype == torch.float16 and matrix.in_features <= MAX_FEATURES for matrix in matrices)
    )


def num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _tables(made: Chain, form: Form) -> Tables | None:
    device = made.matrices[0].stream.device
    limit, places = shared_memory(device.index) - STATIC_BYTES, len(workspace(device).counters) // 2
    found = choose(form, made, num_processors(device), limit, places)
    if found is None:
        return None
    warps, slots, schedules = found
    table, held, columns = np.zeros(len(made.links), LINK), list[Tensor](), None
    for row, link, matrix, schedule in zip(table, made.links, made.matrices, schedules, strict=True):
        held.extend(_fill(row, link, matrix, schedule, columns, device))
        columns = _columns(schedule, matrix.out_features)
    return Tables(
        form, warps, slots, _shared_bytes(form, made, schedules, warps, slots), _room(made, schedules),
        _on(device, table), tuple(held),
    )  # fmt: skip


def choose(
    form: Form, made: Chain, processors: int, shared_limit: int, num_places: int
) -> tuple[int, int, list[Schedule]] | None:
    """Warps of a thread block and slots of their rings with which every link's product fits; one for all."""
    for warps in (warps for warps in WARPS if warps <= form.most_warps):
        split, last = Warps(1, warps, form.max_chunk), len(made.links) - 1
        schedules = [
            make_schedule(m.shapes, m.input.row_blocks, m.input.first_groups, split, processors, 2 if i == last else 1)
            for i, m in enumerate(made.matrices)
        ]
        if not all(s.num_slots <= num_places and s.fits_tables for s in schedules):
            continue
        for slots in SLOTS:
            if _shared_bytes(form, made, schedules, warps, slots) <= shared_limit:
                return warps, slots, schedules
    return None


def _room(made: Chain, schedules: Sequence[Schedule]) -> tuple[int, int, int, int]:
    runs, tiles = (max(table.shape[-2] for table in tables) for tables in (
        [s.runs for s in schedules], [s.tiles for s in schedules]))  # fmt: skip
    maxima = max(len(matrix.maxima) for matrix in made.matrices)
    return runs, tiles, _up(maxima, 4), max(s.num_sums for s in schedules)


def _shared_bytes(form: Form, made: Chain, schedules: Sequence[Schedule], warps: int, slots: int) -> int:
    """As exl2_chain.cu lays it out."""
    slot_bytes = WEIGHT_BYTES if form.one else form.slot_bytes
    runs, tiles, maxima, sums = _room(made, schedules)
    tables = 2 * 16 * warps * runs + 16 * tiles + 4 * maxima
    return warps * slots * slot_bytes + tables + form.shared_bytes(0, sums) + (_input_bytes(made) if form.one else 0)


def _input_bytes(made: Chain) -> int:
    """Of one row with what it is sorted by."""
    most = 0
    for link, matrix in zip(made.links, made.matrices, strict=True):
        most = max(most, matrix.input.num_bytes(1))
        if not isinstance(link.start, Gate):
            tables = _up(8 * matrix.input.num_groups, 16) + _up(4 * matrix.in_features // COLUMN_STEP, 16)
            most = max(most, matrix.input.num_bytes(1) + tables + 4 * matrix.in_features)
    return most


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


# ---- tables


def _fill(
    row: np.void, link: Link, matrix: Streamed, schedule: Schedule, columns: NDArray[np.uint32] | None,
    device: torch.device,
) -> list[Tensor]:  # fmt: skip
    """One link's entry, and the tensors that it points to. columns: of the link before."""
    given, is_gated = matrix.input, isinstance(link.start, Gate)
    groups = given.groups.cpu().numpy()
    whole = b"" if is_gated else _whole(given, groups, columns)
    tensors = {
        "runs": _on(device, schedule.runs),
        "tiles": _on(device, schedule.tiles),
        "maxima": torch.nn.functional.pad(matrix.maxima, (0, -len(matrix.maxima) % 4)),
        "whole": _on(device, np.frombuffer(whole, np.uint8)),
        "columns": _on(device, _columns(schedule, matrix.out_features)),
    }
    for name, tensor in tensors.items():
        row[name] = tensor.data_ptr()
    row["stream"], row["order"], row["groups"] = (t.data_ptr() for t in (matrix.stream, given.order, given.groups))
    row["num_runs"], row["num_tiles"] = schedule.runs.shape[-2], schedule.tiles.shape[1]
    row["num_maxima"], row["whole_bytes"] = len(tensors["maxima"]), len(whole)
    row["num_groups"], row["input_bytes"] = given.num_groups, given.num_bytes(1)
    row["counted_groups"] = int((groups[:, 0] < matrix.in_features).sum())
    row["width"], row["outputs"] = matrix.in_features, matrix.out_features
    row["bias"] = 0 if link.bias is None else link.bias.data_ptr()
    match link.start:
        case Norm(weight=weight, eps=eps, offset=offset):
            row["start"], row["weight"], row["eps"], row["offset"] = NORM, weight.data_ptr(), eps, offset
        case Gate(activation=activation):
            row["start"], row["activation"] = GATE, ACTIVATIONS.index(activation)
        case None:
            row["start"] = SORT
    return list(tensors.values())


def _columns(schedule: Schedule, num_outputs: int) -> NDArray[np.uint32]:
    """[outputs / 32] where parts of a product's columns lie: 2 * first slot + half of its tile << 8 | how many."""
    table = np.zeros(num_outputs // COLUMN_STEP, np.uint32)
    for column, sums, _, parts in schedule.tiles.reshape(-1, 4):
        first, count = parts >> 8, parts & 0xFF
        for half in range((sums & 0xFFFF) // COLUMN_STEP):
            table[column // COLUMN_STEP + half] = (2 * first + half) << 8 | count
    return table


def _whole(given: SortedInput, groups: NDArray[np.int32], columns: NDArray[np.uint32] | None) -> bytes:
    """What a thread block needs to sort one row: features where their values go, groups, columns of the link before."""
    places = np.zeros(given.num_bytes(1) // 2, np.uint16)
    order = given.order.cpu().numpy()
    for group, (first, shape) in enumerate(groups):
        rows = shape & 0xFFFF
        start = 8 * (group + 1) + first  # a header of 16 bytes before each group's
        places[start : start + rows] = order[first : first + rows]
    tables = (places, groups) if columns is None else (places, groups, columns)
    return b"".join(table.tobytes() + bytes(-table.nbytes % 16) for table in tables)


def _on(device: torch.device, table: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.frombuffer(table.tobytes(), np.uint8).copy()).to(device)
