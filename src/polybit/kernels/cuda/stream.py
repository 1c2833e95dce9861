"""The order in which CUDA kernels read a matrix: the same bits as the file's, rearranged once at load.

Columns are cut into tiles of 64, sorted rows into blocks of 32. A tile's bytes lie together, group after group: first
the group's 64 scale codes (32 bytes), then its blocks (256 bytes a bit). In a block each of a warp's 32 lanes has
2 * bits words of its own: lane 4 g + q holds rows 8 q .. 8 q + 7 of columns g, g + 8, .. g + 56, which makes a lane's
words whole fragments of the tensor cores' m16n8k16. `unpack.cuh` says which bit is where. Groups of more than 2 KB are
cut, their codes repeated.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

from polybit.format.exl2 import Layout

TILE_COLUMNS = 64
BLOCK_ROWS = 32
HEADER_BYTES = 32
MAX_GROUP_BLOCKS = {2: 2, 3: 2, 4: 2}  # one of other widths: no more than 2 KB


@dataclass(frozen=True)
class StreamGroup:
    """`num_blocks` blocks of one group of the file; it may have more, in the neighbours."""

    bits: int
    num_blocks: int
    source: int  # the group in the file

    @property
    def form(self) -> tuple[int, int]:
        """Groups of equal form are read by the same code."""
        return self.bits, self.num_blocks

    @property
    def num_bytes(self) -> int:
        return HEADER_BYTES + block_bytes(self.bits) * self.num_blocks


@dataclass(frozen=True, eq=False)
class StreamLayout:
    """How the groups of a matrix follow one another in each of its tiles. Equal ones are one object."""

    groups: tuple[StreamGroup, ...]

    @cached_property
    def group_starts(self) -> tuple[int, ...]:
        """Bytes from a tile's start to each group, and to the tile's end."""
        return (0, *accumulate(group.num_bytes for group in self.groups))

    @cached_property
    def block_starts(self) -> tuple[int, ...]:
        """Blocks before each group, and in all."""
        return (0, *accumulate(group.num_blocks for group in self.groups))

    @property
    def tile_bytes(self) -> int:
        return self.group_starts[-1]

    @property
    def num_blocks(self) -> int:
        return self.block_starts[-1]

    def block_table(self) -> list[tuple[int, int, int, int]]:
        """What `exl2_stream.cu` calls Block, for every block of a tile in order."""
        table, packed_row = list[tuple[int, int, int, int]](), 0
        for group, start in zip(self.groups, self.group_starts, strict=False):
            for i in range(group.num_blocks):
                place = start + HEADER_BYTES + i * block_bytes(group.bits)
                table.append((place, start, packed_row, group.source | group.bits << 16 | (i == 0) << 24))
                packed_row += group.bits
        return table

    def dense_table(self) -> list[tuple[int, int, int, int]]:
        """What `exl2_dense.cu` calls DenseBlock, for every block of a tile in order."""
        return [
            (start + HEADER_BYTES + i * block_bytes(group.bits), start, number, group.bits)
            for number, (group, start) in enumerate(zip(self.groups, self.group_starts, strict=False))
            for i in range(group.num_blocks)
        ]


@cache
def stream_layout(layout: Layout) -> StreamLayout:
    groups = list[StreamGroup]()
    for source, group in enumerate(layout.groups):
        blocks = group.rows // BLOCK_ROWS
        largest = MAX_GROUP_BLOCKS.get(group.bits, 1)
        whole, rest = divmod(blocks, largest)
        sizes = [largest] * whole + ([rest] if rest else [])
        groups += [StreamGroup(group.bits, size, source) for size in sizes]
    return StreamLayout(tuple(groups))


def block_bytes(bits: int) -> int:
    return 256 * bits


def num_tiles(out_features: int) -> int:
    return -(-out_features // TILE_COLUMNS)
