"""Rope tables grow with the sequences, and growing changes no row. Their frequencies are tested in oracle/."""

import torch

from polybit.modules.rope import RopeTable, rope_tables
from polybit.spec import DynamicNtkScaling, LongRopeScaling, Rope

CPU = torch.device("cpu")


def test_a_long_context_takes_memory_only_as_it_is_filled() -> None:
    table = RopeTable(Rope(10000.0, 64), 10_000_000, CPU)
    cos, _ = table.at(torch.tensor([4999]), 5000)
    assert cos.shape == (1, 32)
    assert sum(rows.nbytes for rows in table._rows) < 4 << 20  # a whole table would take 2.5 GB


def test_growing_changes_no_row() -> None:
    grown, whole = (RopeTable(Rope(10000.0, 16), 9000, CPU) for _ in range(2))
    early = grown.at(torch.arange(100), 100)
    late = grown.at(torch.arange(9000), 9000)
    for some, more, all_at_once in zip(early, late, whole.at(torch.arange(9000), 9000), strict=True):
        assert torch.equal(some, more[:100])
        assert torch.equal(more, all_at_once)


def test_frequencies_follow_the_length_at_load_however_short_the_sequence() -> None:
    longrope = LongRopeScaling((1.0,) * 8, (4.0,) * 8, original_length=128, attention_factor=1.0)
    for scaling in (longrope, DynamicNtkScaling(2.0, 128)):
        rope = Rope(10000.0, 16, scaling=scaling)
        short, long = (RopeTable(rope, length, CPU).at(torch.arange(64), 64)[1] for length in (128, 256))
        assert not torch.allclose(short, long)


def test_blocks_of_equal_rope_share_a_table() -> None:
    tables = rope_tables(512, CPU)
    assert tables(Rope(10000.0, 16)) is tables(Rope(10000.0, 16))
    assert tables(Rope(10000.0, 16)) is not tables(Rope(5000.0, 16))
