"""Rope tables grow with the sequences, and growing changes no row. Their frequencies are tested in oracle/."""

import torch

from polybit.modules.rope import RopeTable, RopeTables
from polybit.spec import DynamicNtkScaling, LongRopeScaling, Rope

CPU = torch.device("cpu")


def test_a_long_context_takes_memory_only_as_it_is_filled() -> None:
    table = RopeTable(Rope(10000.0, 64), 10_000_000, CPU)
    cos, _ = table.up_to(5000)
    assert cos.shape[0] >= 5000
    assert cos.shape[1] == 32
    assert sum(rows.nbytes for rows in table._rows) < 4 << 20  # a whole table would take 2.5 GB


def test_growing_changes_no_row() -> None:
    grown, whole = (RopeTable(Rope(10000.0, 16), 9000, CPU) for _ in range(2))
    for some, more, all_at_once in zip(grown.up_to(100), grown.up_to(9000), whole.up_to(9000), strict=True):
        assert torch.equal(some, more[: len(some)])
        assert torch.equal(more, all_at_once)


def test_frequencies_follow_the_length_at_load_however_short_the_sequence() -> None:
    longrope = LongRopeScaling((1.0,) * 8, (4.0,) * 8, original_length=128, attention_factor=1.0)
    for scaling in (longrope, DynamicNtkScaling(2.0, 128)):
        rope = Rope(10000.0, 16, scaling=scaling)
        short, long = (RopeTable(rope, length, CPU).up_to(64)[1] for length in (128, 256))
        assert not torch.allclose(short, long)


def test_blocks_of_equal_rope_share_a_table() -> None:
    tables = RopeTables(512, CPU)
    assert tables.of(Rope(10000.0, 16)) is tables.of(Rope(10000.0, 16))
    assert tables.of(Rope(10000.0, 16)) is not tables.of(Rope(5000.0, 16))


def test_reserved_tables_stay_where_they_are() -> None:
    tables = RopeTables(100_000, CPU)
    table = tables.of(Rope(10000.0, 16))
    tables.reserve(10_000)
    before = [rows.data_ptr() for rows in table.up_to(1)]
    assert [rows.data_ptr() for rows in table.up_to(10_000)] == before
