"""Who works on what in one launch of a product that reads the stream: bytes over thread blocks, and over their warps.

The tiles of all matrices, one after another, make one line of bytes. Every thread block gets an equal piece of it, and
each of its warps an equal piece of that, cut between groups; so a warp reads one long run of bytes and seldom changes
tiles. Where whole tiles divide evenly enough among thread blocks they stay whole; else whoever finishes a tile last
adds up its parts, in an order that does not depend on who that is. The schedule depends on shapes alone.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from polybit.kernels.cuda.stream import BLOCK_ROWS, TILE_COLUMNS, StreamLayout, num_tiles

SPLIT_COST_BYTES = 24_000  # what adding up a tile's parts takes, in bytes that a thread block could have read
MIN_PART = 1 / 16  # of a tile or of a share, whichever is less: ends of tiles that are smaller stay with the rest
CHUNK_BLOCKS = {2: 4, 3: 2, 4: 2}  # 32 rows each, 2 KB at most; one of other widths
ENDS_TILE = 1 << 15
MAX_SUMS = 255  # 8 bits each in the tables of a launch: what warps of a thread block leave, and parts of a tile
MAX_PARTS = 255
MAX_TILES = 256  # of a thread block, which keeps their table in shared memory
MAX_INPUT = 1 << 16  # groups, and blocks of 32 rows

Words = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """One matrix of a launch."""

    layout: StreamLayout
    out_features: int  # with the file's padding

    @property
    def in_features(self) -> int:
        return BLOCK_ROWS * self.layout.num_blocks

    @property
    def num_tiles(self) -> int:
        return num_tiles(self.out_features)

    @property
    def num_bytes(self) -> int:
        return self.num_tiles * self.layout.tile_bytes


@dataclass(frozen=True)
class Warps:
    """Those of a thread block."""

    count: int
    max_chunk: int  # blocks of 32 rows in a chunk


@dataclass(frozen=True)
class Part:
    """Groups [first, stop) of a tile, or of several side by side."""

    matrix: int
    tile: int
    first: int
    stop: int


@dataclass(frozen=True)
class Schedule:
    """The tables of `tables.cuh`, uint32. B thread blocks."""

    runs: NDArray[np.uint32]  # [B, warps, runs, 4], the last of each warp empty
    tiles: NDArray[np.uint32]  # [B, tiles, 4]
    num_sums: int  # of warps in one thread block
    num_slots: int  # of partial sums of thread blocks

    most_parts: int  # of a tile, among thread blocks

    @property
    def fits_tables(self) -> bool:
        """Whether counts fit the bits that the tables have for them."""
        return self.num_sums <= MAX_SUMS and self.most_parts <= MAX_PARTS and self.tiles.shape[1] <= MAX_TILES


def make_schedule(
    shapes: Sequence[Shape], row_blocks: Sequence[int], input_groups: Sequence[int], warps: Warps, num_blocks: int,
    side_by_side: int = 1,
) -> Schedule:  # fmt: skip
    """`row_blocks`, `input_groups`: where each matrix's activations begin, in blocks of 32 rows and in groups.

    `side_by_side`: neighbouring tiles that are worked on together, as one wide tile; a run then is the first's.
    """
    work = _divide(shapes, warps.count, num_blocks, side_by_side)
    writer = _Tables(shapes, row_blocks, input_groups, warps.max_chunk, side_by_side)
    written = [writer.block(rows) for rows in work]
    return Schedule(
        runs=_padded([warp for block in written for warp in block.runs], 1).reshape(
            len(work), -1, writer.longest + 1, 4
        ),
        tiles=_padded(_with_slots([block.tiles for block in written]), 0),
        num_sums=max(block.num_sums for block in written),
        num_slots=_num_slots([block.tiles for block in written]),
        most_parts=max(_counts([block.tiles for block in written]).values()),
    )


# ---- dividing


def _divide(shapes: Sequence[Shape], num_warps: int, num_blocks: int, side_by_side: int) -> list[list[list[Part]]]:
    """For each thread block and each of its warps, the parts that it takes."""
    line = _Line(shapes, side_by_side)
    ends = line.block_ends(num_blocks)
    divided = list[list[list[Part]]]()
    for start, stop in zip([0.0, *ends[:-1]], ends, strict=True):
        cuts = [start + (stop - start) * i / num_warps for i in range(num_warps + 1)]
        divided.append([line.parts(a, b) for a, b in pairwise(cuts)])
    return divided


class _Line:
    """All tiles one after another; places on it are bytes."""

    def __init__(self, shapes: Sequence[Shape], side_by_side: int) -> None:
        self._shapes = shapes
        wide = [(m, first) for m, shape in enumerate(shapes) for first in range(0, shape.num_tiles, side_by_side)]
        self._tiles = [(m, first // side_by_side) for m, first in wide]
        widths = [min(side_by_side, shapes[m].num_tiles - first) for m, first in wide]
        self._costs = [shapes[m].layout.tile_bytes * width for (m, _), width in zip(wide, widths, strict=True)]
        self._ends = list(accumulate(self._costs))

    def block_ends(self, num_blocks: int) -> list[float]:
        """Where each thread block's piece ends: between tiles if that costs little, else at equal shares."""
        share = self._ends[-1] / num_blocks
        whole = [self._nearest_tile_end(share * (i + 1)) for i in range(num_blocks)]
        longest = max(b - a for a, b in zip([0, *whole[:-1]], whole, strict=True))
        if longest <= share + SPLIT_COST_BYTES:
            return [float(end) for end in whole]
        return [self._snapped(share * (i + 1), share) for i in range(num_blocks - 1)] + [float(self._ends[-1])]

    def parts(self, start: float, stop: float) -> list[Part]:
        """What lies between two places, which move to the nearest ends of groups."""
        (first_tile, first), (last_tile, last) = self._place(start), self._place(stop)
        parts = list[Part]()
        for i in range(first_tile, min(last_tile + 1, len(self._tiles))):
            matrix, tile = self._tiles[i]
            begin = first if i == first_tile else 0
            end = last if i == last_tile else len(self._shapes[matrix].layout.groups)
            if end > begin:
                parts.append(Part(matrix, tile, begin, end))
        return parts

    def _nearest_tile_end(self, place: float) -> int:
        i = bisect_left(self._ends, place)
        below = self._ends[i - 1] if i > 0 else 0
        if i == len(self._ends) or place - below < self._ends[i] - place:
            return below
        return self._ends[i]

    def _snapped(self, place: float, share: float) -> float:
        end = self._nearest_tile_end(place)
        cost = self._costs[min(bisect_left(self._ends, place), len(self._costs) - 1)]
        return float(end) if abs(place - end) < MIN_PART * min(cost, share) else place

    def _place(self, place: float) -> tuple[int, int]:
        """The tile and its group nearest to that place: (tile, groups of it that lie before)."""
        i = bisect_left(self._ends, place)
        if i == len(self._ends):
            return i, 0
        layout = self._shapes[self._tiles[i][0]].layout
        within = (place - (self._ends[i] - self._costs[i])) / self._costs[i] * layout.tile_bytes
        starts = layout.group_starts
        g = bisect_left(starts, within)
        nearest = g - 1 if g > 0 and within - starts[g - 1] < starts[min(g, len(starts) - 1)] - within else g
        return i, nearest


# ---- tables


@dataclass(frozen=True)
class _Block:
    runs: list[list[Words]]  # of each warp
    tiles: list[tuple[int, int, int, tuple[int, int]]]  # column, width, sums, (matrix, tile)
    num_sums: int


class _Tables:
    def __init__(
        self, shapes: Sequence[Shape], row_blocks: Sequence[int], input_groups: Sequence[int], max_chunk: int,
        side_by_side: int,
    ) -> None:  # fmt: skip
        self._shapes, self._side_by_side = shapes, side_by_side
        self._row_blocks, self._input_groups = row_blocks, input_groups
        self._columns = [0, *accumulate(shape.out_features for shape in shapes)]
        self._streams = [0, *accumulate(shape.num_bytes for shape in shapes)]
        self._maxima = [0, *accumulate(len(shape.layout.groups) for shape in shapes)]
        self._runs = cache(lambda m, first, stop: list(_runs(shapes[m].layout, first, stop, max_chunk)))
        self.longest = 0

    def block(self, warps: Sequence[Sequence[Part]]) -> _Block:
        takers: dict[tuple[int, int], list[tuple[int, Part]]] = {}  # of each tile: warps, in order
        for warp, parts in enumerate(warps):
            for part in parts:
                takers.setdefault((part.matrix, part.tile), []).append((warp, part))
        runs: list[list[Words]] = [[] for _ in warps]
        tiles, used = list[tuple[int, int, int, tuple[int, int]]](), 0
        for (m, tile), taken in sorted(takers.items()):
            first = TILE_COLUMNS * self._side_by_side * tile
            width = min(TILE_COLUMNS * self._side_by_side, self._shapes[m].out_features - first)
            tiles.append((self._columns[m] + first, width, used << 16 | len(taken) << 24, (m, tile)))
            for warp, part in taken:
                runs[warp] += self._placed(part, used)
                used += 1
        self.longest = max(self.longest, *map(len, runs))
        return _Block(runs, tiles, used)

    def _placed(self, part: Part, sums: int) -> list[Words]:
        m = part.matrix
        base = self._streams[m] + part.tile * self._side_by_side * self._shapes[m].layout.tile_bytes
        placed = [
            (
                (base + source) // 16,
                shape,
                self._maxima[m] + group | (self._input_groups[m] + group) << 16,
                self._row_blocks[m] + row | sums << 16,
            )
            for source, shape, group, row in self._runs(m, part.first, part.stop)
        ]
        source, shape, group, row = placed[-1]
        return [*placed[:-1], (source, shape | ENDS_TILE, group, row)]


def _with_slots(
    blocks: Sequence[Sequence[tuple[int, int, int, tuple[int, int]]]],
) -> list[list[Words]]:
    """Tiles that several thread blocks share get neighbouring slots for their parts."""
    counts = _counts(blocks)
    firsts, used = dict[tuple[int, int], int](), 0
    for tile, count in counts.items():
        firsts[tile] = used
        used += count if count > 1 else 0
    taken, out = dict.fromkeys(counts, 0), list[list[Words]]()
    for block in blocks:
        out.append([])
        for column, width, sums, tile in block:
            out[-1].append((column, width | sums, firsts[tile] + taken[tile], firsts[tile] << 8 | counts[tile]))
            taken[tile] += 1
    return out


def _num_slots(blocks: Sequence[Sequence[tuple[int, int, int, tuple[int, int]]]]) -> int:
    return sum(count for count in _counts(blocks).values() if count > 1)


def _counts(blocks: Sequence[Sequence[tuple[int, int, int, tuple[int, int]]]]) -> dict[tuple[int, int], int]:
    counts = dict[tuple[int, int], int]()
    for block in blocks:
        for *_, tile in block:
            counts[tile] = counts.get(tile, 0) + 1
    return counts


def _padded(lists: Sequence[Sequence[Words]], extra: int) -> NDArray[np.uint32]:
    """[lists, longest + extra, 4], zeros behind."""
    table = np.zeros((len(lists), max(1, *map(len, lists)) + extra, 4), np.uint32)
    for row, words in zip(table, lists, strict=True):
        if words:
            row[: len(words)] = words
    return table


def _runs(layout: StreamLayout, first: int, stop: int, max_chunk: int) -> Iterator[Words]:
    """What `tables.cuh` calls Run, relative to a tile, to the matrix's groups, and to its rows."""
    while first < stop:
        bits, num_blocks = layout.groups[first].form
        end = next((i for i in range(first, stop) if layout.groups[i].form != (bits, num_blocks)), stop)
        together = max(1, min(max_chunk, CHUNK_BLOCKS.get(bits, 1)) // num_blocks)
        while first < end:
            together = min(together, 1 << (end - first).bit_length() - 1)
            count = (end - first) // together
            shape = bits | num_blocks << 4 | together << 8 | count << 16
            yield layout.group_starts[first], shape, first, layout.block_starts[first]
            first += count * together
