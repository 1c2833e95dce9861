"""The option tables against the bpw that the format's description gives for each at Llama-3-8B shapes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.errors import JobError
from polybit.format.exl2 import storage_bits
from polybit.quantizer.candidates import ATTENTION_OPTIONS, HEAD_SETS, MLP_OPTIONS, ParameterSet, parameter_set

SHAPES = {
    "q": (4096, 4096),
    "k": (4096, 1024),
    "v": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}
ATTENTION_BPW = [2.138, 2.199, 2.283, 2.677, 3.169, 3.170, 4.044, 4.047, 4.082, 4.138]
ATTENTION_BPW += [4.170, 4.190, 4.274, 4.329, 5.256, 5.329, 6.044, 6.338, 8.044]
MLP_BPW = [2.245, 2.323, 2.596, 2.912, 3.283, 3.366, 3.619, 4.137, 4.198, 4.266, 4.348]
MLP_BPW += [5.249, 5.331, 6.071, 6.303, 6.869, 8.035]
HEAD_BPW = {2: 2.735, 3: 3.282, 4: 4.438, 5: 5.188, 6: 6.344, 8: 8.032}


def bpw(option: dict[str, ParameterSet]) -> float:
    bits = sum(
        storage_bits(found.layout(SHAPES[role][0]), SHAPES[role][1], bias=False) for role, found in option.items()
    )
    return bits / sum(SHAPES[role][0] * SHAPES[role][1] for role in option)


def test_options_cost_what_the_tables_say() -> None:
    assert [round(bpw(dict(option)), 3) for option in ATTENTION_OPTIONS] == ATTENTION_BPW
    assert [round(bpw(dict(option)), 3) for option in MLP_OPTIONS] == MLP_BPW


def test_head_sets_cost_what_the_table_says() -> None:
    k, n = 4096, 128256
    found = {b: round(storage_bits(chosen.layout(k), n, bias=False) / (k * n), 3) for b, chosen in HEAD_SETS.items()}
    assert found == HEAD_BPW


def test_distinct_sets_of_each_role() -> None:
    counts = {role: len({option[role] for option in ATTENTION_OPTIONS}) for role in "qkvo"}
    counts |= {role: len({option[role] for option in MLP_OPTIONS}) for role in ("gate", "up", "down")}
    assert counts == {"q": 14, "k": 14, "v": 15, "o": 14, "gate": 13, "up": 13, "down": 14}


def test_description() -> None:
    assert parameter_set("10%x4b/g128 + 90%x3b/g128").describe() == "0.1:4b_128g/0.9:3b_128g s4"
    assert parameter_set("100%x8b/g32").describe() == "1:8b_32g s4"


ALL_SETS = [*HEAD_SETS.values(), *(s for option in (*ATTENTION_OPTIONS, *MLP_OPTIONS) for s in option.values())]


@given(st.sampled_from(ALL_SETS), st.integers(1, 400))
def test_layout_covers_the_rows(chosen: ParameterSet, blocks: int) -> None:
    groups = chosen.layout(32 * blocks).groups
    assert sum(group.rows for group in groups) == 32 * blocks
    assert all(
        group.rows == dict(zip(chosen.bits, chosen.group_sizes, strict=True))[group.bits] for group in groups[:-1]
    )


@given(st.sampled_from(ALL_SETS))
def test_json_round_trip(chosen: ParameterSet) -> None:
    assert ParameterSet.from_json(chosen.to_json(), "x") == chosen


def test_json_takes_the_other_shapes_of_group_size() -> None:
    value: dict[str, Any] = {"bits": [4, 3], "bits_prop": [0.1, 0.9], "group_size": 64, "scale_bits": 4}
    assert ParameterSet.from_json(value, "x") == parameter_set("10%x4b/g64 + 90%x3b/g64")
    value["group_size"] = [32, 128]
    assert ParameterSet.from_json(value, "x") == parameter_set("10%x4b/g32 + 90%x3b/g128")


@pytest.mark.parametrize(
    "change",
    [
        {"bits": [3, 4]},
        {"bits": [7, 3]},
        {"bits_prop": [0.1, 0.8]},
        {"bits_prop": [1]},
        {"group_size": {"4": 48, "3": 64}},
        {"group_size": {"4": 64}},
        {"scale_bits": 5},
        {"bits": None},
    ],
)
def test_json_refuses_what_no_file_can_hold(change: dict[str, Any]) -> None:
    value = parameter_set("10%x4b/g128 + 90%x3b/g128").to_json() | change
    with pytest.raises(JobError, match=r"^option 3 .*measure again$"):
        ParameterSet.from_json(value, "option 3")
