"""What callers give: dataclasses of options, paths, callbacks. Checked by type; ranges are checked elsewhere."""

import dataclasses
import os
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


def path_of(name: str, given: object, error: type[PolybitError]) -> Path:
    """The path that was given, its `~` expanded; whether something is there does not matter. Raises `error`: none."""
    try:
        if not isinstance(given, str | os.PathLike) or not str(given):
            raise TypeError("expected a folder's or file's name")
        path = Path(given).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (TypeError, ValueError, OSError, RuntimeError) as problem:  # too long, a ring of links, or in nobody's home
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{name} is {given!r:.60}, which is no path: {reason}") from None
    return path


def check_callback(name: str, given: object, error: type[PolybitError]) -> None:
    """Raises `error` for what can not be called, before any work is done."""
    if given is not None and not callable(given):
        raise error(f"{name} is {given!r:.60}, expected a function or None")


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
