"""Load options: wrong names and types are refused in one line, before anything is opened."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.errors import ConfigError
from polybit.fields import replaced
from polybit.generator import load
from polybit.model.options import LoadOptions


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("device", 3, "text"),
        ("dtype", ["float16"], "text"),
        ("max_seq_len", "a", "a whole number"),
        ("max_seq_len", 512.0, "a whole number"),
        ("max_seq_len", True, "a whole number"),
        ("rope_alpha", "2", "a number"),
        ("unpacked", "yes", "True or False"),
        ("unpacked", 1, "True or False"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*, expected {expected}$"):
        _with({name: value})


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_value_is_taken_or_refused_by_name(value: Any) -> None:
    for field in dataclasses.fields(LoadOptions):
        try:
            assert getattr(_with({field.name: value}), field.name) is value
        except ConfigError as error:
            if not str(error).startswith(f"{field.name} is "):
                raise


def test_a_whole_number_is_a_number() -> None:
    assert _with({"rope_alpha": 2}).rope_alpha == 2


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option of loading 'max_seqlen'; did you mean max_seq_len"):
        load("anywhere", max_seqlen=512)
    with pytest.raises(ConfigError, match="there are: device, dtype, "):
        load("anywhere", qqq=1)


def _with(fields: dict[str, object]) -> LoadOptions:
    return replaced(LoadOptions(), fields, "option of loading", ConfigError)
