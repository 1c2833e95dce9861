"""Products of a few rows that follow one another, as one launch of `exl2_chain.cu`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.decode import (
    ACTIVATIONS,
    KINDS,
    ROWS_AT_ONCE,
    STATIC_BYTES,
    Form,
    form_for,
    workspace,
)
from polybit.kernels.cuda.launch import Kernel, shared_memory
from polybit.kernels.cuda.schedule import Schedule, Warps, make_schedule
from polybit.kernels.cuda.streamed import Streamed
from polybit.kernels.protocol import Gate, Link, Matrix, Norm

MOST_SLOTS = 6  # chunks of a warp's ring: what is under way while thread blocks meet
LEAST_SLOTS = 2
SORT, NORM, GATE = range(3)  # how a link starts
POINTERS = ("stream", "runs", "tiles", "maxima")
LINK = np.dtype(
    [(name, np.uint64) for name in POINTERS]
    + [("num_runs", np.uint32), ("num_tiles", np.uint32)]
    + [(name, np.uint64) for name in ("order", "groups", "weight", "bias")]
    + [(name, np.uint32) for name in ("num_groups", "start", "activation", "width")]
    + [("eps", np.float32), ("offset", np.float32)]
    + [(name, np.uint32) for name in ("out_stride", "adds", "place", "input")]
)  # as Link in exl2_chain.cu


@dataclass(frozen=True, eq=False)
class Tables:
    """What a launch for some numbers of rows reads, and how it is made."""

    form: Form
    warps: int
    slots: int
    shared_bytes: int
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
        num_rows, device = len(x), x.device
        tables = self._tables[form_for(num_rows)]
        space = workspace(device)
        places = self.places
        new_x, between = torch.empty_like(x), x.new_empty(num_rows * places[-1], dtype=torch.float16)
        room = max(matrix.input.num_bytes(num_rows) for matrix in self.matrices)
        build = Build.of(
            "exl2_chain.cu", tables.form.macros(tables.warps, tables.slots) | {"RESIDUAL": KINDS[x.dtype]}
        )
        Kernel.get(build, "exl2_chain", device).launch(
            (num_processors(device),), 32 * tables.warps, tables.links, len(self.links), first.contiguous(),
            x.contiguous(), new_x, between, torch.empty(room, dtype=torch.uint8, device=device), space.sums,
            space.counters, space.meeting, num_rows, shared_bytes=tables.shared_bytes, together=True,
        )  # fmt: skip
        if self.links[-1].adds:
            return new_x, new_x
        return new_x, between[num_rows * places[-2] :].view(num_rows, -1)

    @property
    def places(self) -> list[int]:
        """Where each link's output begins in what lies between, in elements a token, and where the last one ends."""
        widths = (0 if link.adds else matrix.out_features for link, matrix in zip(self.links, self.matrices, strict=True))
        return list(accumulate(widths, initial=0))


def chain(links: Sequence[Link]) -> Chain | None:
    """None where a matrix is not streamed, types are not what the kernel has, or no launch fits the card."""
    matrices = [link.matrix for link in links if isinstance(link.matrix, Streamed)]
    if len(matrices) < len(links) or not all(_is_served(link, matrix) for link, matrix in zip(links, matrices, strict=True)):
        return None
    made = Chain(tuple(links), tuple(matrices))
    for rows in (1, 8, 16):
        tables = _tables(made, form_for(rows))
        if tables is None:
            return None
        made._tables[tables.form] = tables
    return made


def _is_served(link: Link, matrix: Streamed) -> bool:
    vectors = [vector for vector in (link.bias, link.start.weight if isinstance(link.start, Norm) else None)
               if vector is not None]  # fmt: skip
    return matrix.dtype == torch.float16 and all(v.dtype == torch.float16 and v.dim() == 1 for v in vectors)


def num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _tables(made: Chain, form: Form) -> Tables | None:
    device = made.matrices[0].stream.device
    limit, places = shared_memory(device.index) - STATIC_BYTES, len(workspace(device).counters)
    found = choose(form, made.matrices, num_processors(device), limit, places)
    if found is None:
        return None
    warps, slots, schedules = found
    held = [
        (torch.from_numpy(s.runs.view(np.int32)).to(device), torch.from_numpy(s.tiles.view(np.int32)).to(device))
        for s in schedules
    ]
    table = np.zeros(len(made.links), LINK)
    for i, (row, link, matrix, (runs, tiles)) in enumerate(zip(table, made.links, made.matrices, held, strict=True)):
        _fill(row, link, matrix, runs, tiles)
        row["place"], row["input"] = made.places[i], made.places[i - 1] if i else 0
    return Tables(
        form,
        warps,
        slots,
        form.shared_bytes(warps, max(s.num_sums for s in schedules), slots),
        torch.from_numpy(table.view(np.uint8)).to(device),
        tuple(tensor for pair in held for tensor in pair),
    )


def choose(
    form: Form, matrices: Sequence[Streamed], processors: int, shared_limit: int, num_places: int
) -> tuple[int, int, list[Schedule]] | None:
    """The most warps of a thread block, then the most slots, with which every link's product fits; one for all."""
    for warps in (16, 12, 8):
        if warps > form.most_warps:
            continue
        split = Warps(1, warps, form.max_chunk)
        schedules = [
            make_schedule(m.shapes, m.input.row_blocks, m.input.first_groups, split, processors) for m in matrices
        ]
        num_sums = max(s.num_sums for s in schedules)
        fitting = [
            slots
            for slots in range(MOST_SLOTS, LEAST_SLOTS - 1, -1)
            if form.shared_bytes(warps, num_sums, slots) <= shared_limit
        ]
        if fitting and all(s.num_slots <= num_places and s.fits_tables for s in schedules):
            return warps, fitting[0], schedules
    return None


def _fill(row: np.void, link: Link, matrix: Streamed, runs: Tensor, tiles: Tensor) -> None:
    row["stream"], row["runs"], row["tiles"] = matrix.stream.data_ptr(), runs.data_ptr(), tiles.data_ptr()
    row["maxima"], row["num_runs"], row["num_tiles"] = matrix.maxima.data_ptr(), runs.shape[-2], tiles.shape[1]
    row["order"], row["groups"] = matrix.input.order.data_ptr(), matrix.input.groups.data_ptr()
    row["num_groups"], row["width"] = matrix.input.num_groups, matrix.in_features
    row["out_stride"], row["adds"] = matrix.out_features, link.adds
    row["bias"] = 0 if link.bias is None else link.bias.data_ptr()
    match link.start:
        case Norm(weight=weight, eps=eps, offset=offset):
            row["start"], row["weight"], row["eps"], row["offset"] = NORM, weight.data_ptr(), eps, offset
        case Gate(activation=activation):
            row["start"], row["activation"] = GATE, ACTIVATIONS.index(activation)
        case None:
            row["start"] = SORT
