"""Launches for cards that are not here: what does not fit the tables or the card is never chosen."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.kernels.cuda import batch
from polybit.kernels.cuda.decode import ROWS_AT_ONCE, STATIC_BYTES, Form, choose, form_for
from polybit.kernels.cuda.schedule import MAX_PARTS, MAX_SUMS, MAX_TILES, Schedule, Shape, Warps, make_schedule
from polybit.kernels.cuda.stream import TILE_COLUMNS, stream_layout
from polybit.quantizer.candidates import parameter_set

# Multiprocessors, and bytes of shared memory that a thread block may have beside the kernel's own.
CARDS = {
    "H100": (132, 226_304),
    "4090": (128, 95_000),
    "laptop": (20, 95_000),
    "T4": (40, 59_000),
    "MIG": (16, 226_304),
    "GTX 1650": (14, 59_000),
}
LAYERS = [
    ("100%x4b/g128", 4096, [4096, 1024, 1024]),
    ("100%x4b/g128", 4096, [14336, 14336]),
    ("100%x4b/g128", 14336, [4096]),
    ("5%x6b/g32 + 20%x3b/g64 + 75%x2b/g64", 14336, [4096]),
]
SHAPES = [
    ("100%x4b/g32", 8192, [256]),
    ("100%x4b/g32", 18432, [512]),
    ("100%x2b/g64", 28672, [64]),
    ("100%x8b/g128", 576, [192, 64]),
    ("15%x8b/g128 + 85%x6b/g128", 8192, [256_000]),
    ("10%x3b/g64 + 90%x2b/g64", 8192, [28672, 28672]),
]


@pytest.mark.parametrize("rows", [1, 8, ROWS_AT_ONCE])
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS.keys())
@pytest.mark.parametrize(("text", "in_features", "widths"), SHAPES)
def test_every_shape_has_a_launch_that_fits(card, rows, text, in_features, widths) -> None:
    form, (processors, shared) = form_for(rows), card
    layout = stream_layout(parameter_set(text).layout(in_features))
    shapes, nothing = tuple(Shape(layout, width) for width in widths), (0,) * len(widths)
    chosen = choose(form, shapes, nothing, nothing, processors, shared, 64 * processors)
    assert chosen is not None
    warps, schedule = chosen
    assert form.shared_bytes(warps, schedule.num_sums) <= shared
    assert schedule.fits_tables
    assert schedule.most_parts == most_parts(schedule)


@pytest.mark.parametrize("rows", [1, 8, ROWS_AT_ONCE])
@pytest.mark.parametrize("processors", [14, 40])
@pytest.mark.parametrize("shared", [48 << 10, 64 << 10, 99 << 10], ids=["48 KB", "64 KB", "99 KB"])
@pytest.mark.parametrize(("text", "in_features", "widths"), LAYERS)
def test_layers_of_an_8b_have_a_launch_on_small_cards(text, in_features, widths, shared, processors, rows) -> None:
    """Of as much shared memory as cards of compute capability 7.5 (64 KB) and 8.6 to 12.0 (99 KB) have, and of less."""
    form, layout = form_for(rows), stream_layout(parameter_set(text).layout(in_features))
    shapes, nothing = tuple(Shape(layout, width) for width in widths), (0,) * len(widths)
    chosen = choose(form, shapes, nothing, nothing, processors, shared - STATIC_BYTES, 64 * processors)
    assert chosen is not None
    warps, schedule = chosen
    assert form.shared_bytes(warps, schedule.num_sums) + STATIC_BYTES <= shared
    assert schedule.fits_tables
    assert schedule.num_slots <= 64 * processors


def test_a_schedule_with_too_many_parts_says_so() -> None:
    layout = stream_layout(parameter_set("100%x4b/g32").layout(8192))
    schedule = make_schedule((Shape(layout, 64),), (0,), (0,), Warps(1, 2), 2048)
    assert schedule.most_parts > MAX_PARTS
    assert not schedule.fits_tables


def test_a_schedule_with_too_many_tiles_says_so() -> None:
    layout = stream_layout(parameter_set("100%x4b/g128").layout(128))
    schedule = make_schedule((Shape(layout, 64 * MAX_SUMS),), (0,), (0,), Warps(1, 4), 1)
    assert schedule.fits_tables
    for tiles, fits in ((MAX_TILES, True), (MAX_TILES + 1, False)):
        assert replace(schedule, tiles=np.resize(schedule.tiles, (1, tiles, 4))).fits_tables == fits


def test_where_nothing_fits_nothing_is_chosen() -> None:
    layout = stream_layout(parameter_set("100%x4b/g128").layout(512))
    assert choose(Form(2, False, 8), (Shape(layout, 64),), (0,), (0,), 20, 10_000, 100) is None


@pytest.mark.parametrize(
    "form", dict.fromkeys(batch.BATCHES + batch.WARPGROUP_BATCHES), ids=lambda form: form.build.file
)
@pytest.mark.parametrize(("text", "in_features", "widths"), [*SHAPES, ("100%x6b/g128", 16384, [128])])
def test_many_rows_have_tables_and_a_workspace_that_hold_their_parts(form, text, in_features, widths) -> None:
    """However few tiles a matrix has for the thread blocks of a large card."""
    layout, processors = stream_layout(parameter_set(text).layout(in_features)), 170
    shapes, nothing = [Shape(layout, width) for width in widths], [0] * len(widths)
    schedule = batch.divide(form, shapes, nothing, 2 * processors)
    assert most_parts(schedule) == schedule.most_parts <= MAX_PARTS
    part = form.warps * form.warp_columns * form.most_rows
    assert schedule.num_slots * part <= 64 * processors * ROWS_AT_ONCE * TILE_COLUMNS  # numbers of the workspace


def most_parts(schedule: Schedule) -> int:
    """As the tables say it."""
    return int((schedule.tiles[..., 3] & 0xFF).max())
