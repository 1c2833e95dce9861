"""Frozen dataclasses of options: fields replaced by name, values checked by type; ranges are checked elsewhere."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from polybit.errors import PolybitError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)

KINDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


def replaced(options: "Options", fields: Mapping[str, Any], what: str, error: type[PolybitError]) -> "Options":
    """`options` with `fields` in place of some of its own. Raises `error` for a name that is none of them."""
    names = [field.name for field in dataclasses.fields(options)]
    for name in fields:
        if name not in names:
            raise error(f"unknown {what} {name!r}; {did_you_mean(name, names)}")
    return dataclasses.replace(options, **fields)


def check_kinds(options: "DataclassInstance", error: type[PolybitError]) -> None:
    """Raises `error` for a value that is not of its field's type; whole numbers are numbers, True is none."""
    for name, hint in get_type_hints(type(options)).items():
        value, kinds = getattr(options, name), get_args(hint) or (hint,)
        if not any(_is_a(kind, value) for kind in kinds):
            raise error(f"{name} is {value!r:.60}, expected {KINDS[kinds[0]]}")


def _is_a(kind: type, value: object) -> bool:
    if isinstance(value, bool):  # an int to Python
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
