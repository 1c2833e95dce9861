"""Options made from the settings dataclasses: one field, one option, the field's own default."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

Command = Callable[..., None]


@dataclass(frozen=True)
class Flag:
    """How a field shows on the command line, where it is to say more than `--field-name` and its own help."""

    help: str = ""  # empty: the field's metadata has it
    short: str = ""
    default: str = ""  # what --help shows for a default of None


def settings(kind: type, panel: str, flags: Mapping[str, Flag]) -> Callable[[Command], Command]:
    """Decorate a command: its parameter of type `kind` becomes one option for each field, and arrives filled."""

    def expand(command: Command) -> Command:
        signature = inspect.signature(command)
        (slot,) = (name for name, parameter in signature.parameters.items() if parameter.annotation is kind)
        kept = [parameter for name, parameter in signature.parameters.items() if name != slot]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {field.name: _as_field(given.pop(field.name)) for field in _optional(kind)}
            command(**given, **{slot: kind(**values)})

        added = option_parameters(kind, panel, flags)
        # What inspect reads in place of the code; the stubs know no such attribute of functions.
        run.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return run

    return expand


def option_parameters(kind: type, panel: str, flags: Mapping[str, Flag]) -> list[inspect.Parameter]:
    """One parameter that Typer reads for each field of the dataclass `kind`; what few need has a panel of its own."""
    hints = get_type_hints(kind)
    panels = {False: panel, True: f"{panel}, advanced"}
    return [
        _parameter(
            field, flags.get(field.name, Flag()), hints[field.name], panels[field.metadata.get("advanced", False)]
        )
        for field in _optional(kind)
    ]


def _optional(kind: type) -> list[Field[Any]]:
    """The fields that fit on a command line."""
    return [field for field in fields(kind) if not field.metadata.get("no_option")]


def _parameter(field: Field[Any], flag: Flag, hint: Any, panel: str) -> inspect.Parameter:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    option = typer.Option(
        *_names(field.name, flag.short, can_negate=default is not False and hint in (bool, bool | None)),
        help=_sentence(flag.help or field.metadata["help"]),
        rich_help_panel=panel,
        show_default=flag.default or not (default is None or default is False or default == ()),
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[field.metadata.get("on_a_line") or _typed_on_a_line(hint), option],
    )


def _names(field_name: str, short: str, can_negate: bool) -> list[str]:
    name = field_name.replace("_", "-")
    return [*([short] if short else []), f"--{name}/--no-{name}" if can_negate else f"--{name}"]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _typed_on_a_line(hint: Any) -> Any:
    """Typer takes a repeated option for a list; the settings dataclasses hold tuples."""
    return GenericAlias(list, get_args(hint)[:1]) if get_origin(hint) is tuple else hint


def _as_field(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
