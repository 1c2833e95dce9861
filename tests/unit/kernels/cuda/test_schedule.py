"""Who works on what: every group of every tile exactly once, whatever the shapes and the card."""

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from polybit.format.exl2 import Group, Layout
from polybit.kernels.cuda.schedule import ENDS_TILE, Schedule, Shape, Warps, make_schedule
from polybit.kernels.cuda.stream import BLOCK_ROWS, MAX_GROUP_BLOCKS, block_bytes, stream_layout

groups = st.builds(Group, st.sampled_from([2, 3, 4, 5, 6, 8]), st.integers(1, 9).map(lambda blocks: 32 * blocks))
layouts = st.lists(groups, min_size=1, max_size=12).map(
    lambda listed: Layout(tuple(sorted(listed, key=lambda group: -group.bits)))
)
shapes = st.builds(Shape, layouts.map(stream_layout), st.integers(1, 30).map(lambda n: 32 * n))
warps = st.builds(Warps, st.integers(1, 16), st.sampled_from([2, 4]))
side_by_side = st.sampled_from([1, 2, 4, 8])


@given(layouts)
def test_a_tile_holds_every_block_once(layout) -> None:
    stream = stream_layout(layout)
    assert sum(group.num_blocks for group in stream.groups) * BLOCK_ROWS == layout.in_features
    assert all(group.num_blocks <= MAX_GROUP_BLOCKS.get(group.bits, 1) for group in stream.groups)
    places = [(place, block_bytes(word >> 16 & 0xFF)) for place, _, _, word in stream.block_table()]
    assert all(a + size <= b for (a, size), (b, _) in pairwise(places))
    assert places[-1][0] + places[-1][1] == stream.tile_bytes
    assert stream.block_table()[-1][2] + stream.groups[-1].bits == layout.packed_rows


@settings(deadline=None)
@given(st.lists(shapes, min_size=1, max_size=3), warps, st.integers(1, 12), side_by_side)
def test_every_group_of_every_tile_is_taken_once(listed, split, num_blocks, together) -> None:
    schedule = make_schedule(listed, [0] * len(listed), [0] * len(listed), split, num_blocks, together)
    expected = Counter[tuple[int, int]]()
    start = 0
    for shape in listed:
        for tile in range(0, shape.num_tiles, together):
            base = start + tile * shape.layout.tile_bytes
            for group, place in zip(shape.layout.groups, shape.layout.group_starts, strict=False):
                expected[base + place, group.num_bytes] += 1
        start += shape.num_bytes
    assert Counter(taken(schedule)) == expected


@settings(deadline=None)
@given(st.lists(shapes, min_size=1, max_size=3), warps, st.integers(1, 12), side_by_side)
def test_sums_and_slots_have_one_writer_and_one_reader(listed, split, num_blocks, together) -> None:
    schedule = make_schedule(listed, [0] * len(listed), [0] * len(listed), split, num_blocks, together)
    columns = Counter[int]()
    slots = Counter[int]()
    for runs, tiles in zip(schedule.runs, schedule.tiles, strict=True):
        written = [int(run[3] >> 16) for warp in runs for run in warp if run[1] & ENDS_TILE]
        read = [
            i for _, sums, _, _ in tiles.tolist() for i in range(sums >> 16 & 0xFF, (sums >> 16 & 0xFF) + (sums >> 24))
        ]
        assert sorted(written) == read == list(range(len(written)))
        for column, sums, slot, parts in tiles.tolist():
            if sums:
                columns[column] += 1
                slots[slot] += parts & 0xFF > 1
                assert parts & 0xFF == 1 or parts >> 8 <= slot < (parts >> 8) + (parts & 0xFF)
    assert sum(columns.values()) >= sum(-(-shape.num_tiles // together) for shape in listed)
    assert all(count <= 1 for slot, count in slots.items())
    assert sum(slots.values()) == schedule.num_slots


def taken(schedule: Schedule) -> list[tuple[int, int]]:
    """Place and bytes of every group that some warp takes."""
    found = list[tuple[int, int]]()
    for source, shape, _, _ in schedule.runs.reshape(-1, 4).tolist():
        size = 32 + 256 * (shape & 0xF) * (shape >> 4 & 0xF)
        found += [(16 * source + i * size, size) for i in range((shape >> 8 & 0x7) * (shape >> 16))]
    return found
