"""Sampling parameters as a line of text sets them. Everything comes from the fields of SamplingParams."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from polybit.errors import RequestError, did_you_mean
from polybit.fields import KINDS
from polybit.generator.params import SamplingParams, with_fields

ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
ESCAPE = re.compile(r"\\([nt\\])")
MOST_ALIGNED = 24  # characters of values beside which meanings stand in a column
DEFAULT, NONE = "default", "none"
SWITCHES = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def with_setting(params: SamplingParams, name: str, text: str) -> SamplingParams:
    """`params` with the value that `text` stands for. Raises RequestError for a wrong name, kind or range."""
    hint = _hint(name)
    value = getattr(SamplingParams(), name) if text == DEFAULT else _value(name, text, hint)
    return with_fields(params, {name: value})


def differences(params: SamplingParams) -> dict[str, Any]:
    """The fields in which `params` is not as by default."""
    default = SamplingParams()
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def explained(params: SamplingParams, name: str) -> str:
    """One parameter: its value and what it means."""
    _hint(name)
    (meaning,) = (field.metadata["help"] for field in fields(params) if field.name == name)
    return f"{name} is {shown(getattr(params, name))}: {meaning}"


def listed(params: SamplingParams) -> str:
    """All that can be set, one a line; what differs from the default is marked."""
    names, changed = _hints(), differences(params)
    width = max(map(len, names))
    values = [shown(getattr(params, name)) for name in names]
    breadth = min(max(map(len, values)), MOST_ALIGNED)
    meanings = {field.name: field.metadata["help"] for field in fields(params)}
    return "\n".join(
        f"{'*' if name in changed else ' '} {name:{width}}  {value:{breadth}}  {meanings[name]}"
        for name, value in zip(names, values, strict=True)
    )


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return shlex.join(_on_a_line(str(item)) for item in value) or "(nothing)"
    return str(value).replace("\n", " ")


# ---- by the fields' types


def _switch(text: str) -> bool:
    try:
        return SWITCHES[text.lower()]
    except KeyError:
        raise ValueError from None


def _on_a_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def _from_a_line(text: str) -> str:
    """The inverse: a backslash and an n are a line break."""
    return ESCAPE.sub(lambda found: ESCAPES[found[1]], text)


READERS: Mapping[Any, Callable[[str], Any]] = {bool: _switch, int: int, float: float, str: str}
EXPECTED = KINDS | {bool: "on or off"}


def _hints() -> dict[str, Any]:
    """Every parameter that a line of text can set, and its type."""
    hints = get_type_hints(SamplingParams)
    return {field.name: hints[field.name] for field in fields(SamplingParams) if _item(hints[field.name]) is not None}


def _hint(name: str) -> Any:
    hints = _hints()
    if name not in hints:
        raise RequestError(f"there is no parameter {name!r}; {did_you_mean(name, list(hints))}")
    return hints[name]


def _value(name: str, text: str, hint: Any) -> Any:
    if text == NONE and NoneType in get_args(hint):
        return None
    item = _item(hint)
    try:
        if get_origin(hint) is tuple:
            return tuple(READERS[item](_from_a_line(word)) for word in shlex.split(text))
        return READERS[item](text)
    except ValueError:
        several = ", several with spaces between, quoted where they hold some" if get_origin(hint) is tuple else ""
        raise RequestError(f"{name} is {text!r:.60}, expected {EXPECTED[item]}{several}, or {DEFAULT}") from None


def _item(hint: Any) -> Any:
    """The type that text is read as: of a tuple its entries', of a choice the first of those that are text."""
    return next((kind for kind in (*get_args(hint), hint) if kind in READERS), None) if _is_typable(hint) else None


def _is_typable(hint: Any) -> bool:
    """Mappings and the like have no form on a line."""
    return get_origin(hint) is None or get_origin(hint) is tuple or NoneType in get_args(hint)
