"""Parameters set by a line of text: every field by itself, refused values, and what is shown."""

import dataclasses
import re

import pytest

from polybit.chat import settings
from polybit.chat.settings import differences, explained, listed, with_setting
from polybit.errors import RequestError
from polybit.generator.params import SamplingParams


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("top_k", "40", 40),
        ("seed", "5", 5),
        ("seed", "none", None),
        ("max_tokens", "none", None),
        ("ignore_eos", "on", True),
        ("ignore_eos", "False", False),
        ("stop", "END 'two words'", ("END", "two words")),
        ("stop", "'\\n' \"\\t\"", ("\n", "\t")),
        ("stop_tokens", "1 2", (1, 2)),
        ("min_p", "default", 0.05),
        ("max_tokens", "default", 512),
    ],
)
def test_text_becomes_a_value_of_the_fields_type(name: str, text: str, value: object) -> None:
    before = SamplingParams(min_p=0.5, max_tokens=3, seed=1)
    after = with_setting(before, name, text)
    assert getattr(after, name) == value
    assert type(getattr(after, name)) is type(value)
    assert dataclasses.replace(after, **{name: getattr(before, name)}) == before


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("temprature", "1", "did you mean temperature"),
        ("temperature", "hot", "expected a number, or default"),
        ("temperature", "-1", "temperature is -1.0, expected a number from 0"),
        ("temperature", "nan", "temperature is nan"),
        ("temperature", "none", "expected a number"),
        ("top_k", "1.5", "expected a whole number"),
        ("ignore_eos", "maybe", "expected on or off"),
        ("stop", "don't", "quoted"),
        ("stop_tokens", "1 x", "several"),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, text: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=re.escape(complaint)):
        with_setting(SamplingParams(), name, text)


def test_every_field_that_fits_on_a_line_is_listed_with_its_meaning() -> None:
    lines = {line[2:].split()[0]: line for line in listed(SamplingParams(top_k=7)).splitlines()}
    mappings = {field.name for field in dataclasses.fields(SamplingParams) if "Mapping[int" in str(field.type)}
    assert set(lines) == {field.name for field in dataclasses.fields(SamplingParams)} - mappings
    for field in dataclasses.fields(SamplingParams):
        assert field.name in mappings or field.metadata["help"] in lines[field.name]
    assert [name for name, line in lines.items() if line.startswith("*")] == ["top_k"]


def test_every_listed_value_can_be_typed_again() -> None:
    params = SamplingParams(stop=("a b", "c", "\n", "\\n", "\t'", "\\"), stop_tokens=(3, 4), seed=None, ignore_eos=True)
    for name in ("stop", "stop_tokens", "seed", "ignore_eos", "temperature", "top_k"):
        value = getattr(params, name)
        assert getattr(with_setting(SamplingParams(), name, settings.shown(value)), name) == value


def test_one_parameter_is_explained() -> None:
    assert explained(SamplingParams(), "temperature").startswith("temperature is 0.8: flattens")


def test_differences_are_what_makes_the_same_parameters() -> None:
    params = SamplingParams(top_k=3, stop=("x",))
    assert differences(params) == {"top_k": 3, "stop": ("x",)}
    assert differences(SamplingParams()) == {}


@dataclasses.dataclass(frozen=True)
class Later:
    """Fields of kinds that may come."""

    weights: dict[int, float] = dataclasses.field(default_factory=dict, metadata={"help": "a table"})
    schema: str | dict[str, object] | type | None = dataclasses.field(default=None, metadata={"help": "a schema"})
    words: tuple[str, ...] = dataclasses.field(default=("\n", "a b"), metadata={"help": "words"})


def test_new_fields_appear_by_themselves_unless_they_hold_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SamplingParams", Later)
    assert [line.split()[0] for line in listed(Later()).splitlines()] == ["schema", "words"]
    monkeypatch.setattr(settings, "with_fields", lambda params, values: dataclasses.replace(params, **values))
    assert with_setting(Later(), "schema", '{"type": "object"}').schema == '{"type": "object"}'
    assert with_setting(Later(), "schema", "none").schema is None
