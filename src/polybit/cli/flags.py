"""Options made from the settings dataclasses: one field, one option, the field's own default. Nothing is written down twice."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

Command = Callable[..., None]


@dataclass(frozen=True)
class Flag:
    """How a field shows on the command line."""

    help: str
    names: tuple[str, ...] = ()  # short and other names; empty: --field-name alone
    type: Any = None  # where the field's own type cannot be typed on a command line
    default: str | None = None  # what stands in --help for a default of None


def settings(kind: type, flags: Mapping[str, Flag], panel: str) -> Callable[[Command], Command]:
    """Decorate a command: its parameter of type `kind` becomes one option for each flag, and arrives filled.

    Fields without a flag keep their defaults.
    """

    def expand(command: Command) -> Command:
        signature = inspect.signature(command)
        (slot,) = (name for name, parameter in signature.parameters.items() if parameter.annotation is kind)
        kept = [parameter for name, parameter in signature.parameters.items() if name != slot]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: _as_field(given.pop(name)) for name in flags}
            command(**given, **{slot: kind(**values)})

        added = option_parameters(kind, flags, panel)
        run.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return run

    return expand


def option_parameters(kind: type, flags: Mapping[str, Flag], panel: str) -> list[inspect.Parameter]:
    """The fields of dataclass `kind` that have a flag, as parameters that Typer reads."""
    hints = get_type_hints(kind)
    by_name = {field.name: field for field in fields(kind)}
    return [_parameter(by_name[name], flag, flag.type or hints[name], panel) for name, flag in flags.items()]


def _parameter(field: Field[Any], flag: Flag, hint: Any, panel: str) -> inspect.Parameter:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    names = (*flag.names, f"--{field.name.replace('_', '-')}")
    option = typer.Option(
        *(names if hint is not bool and hint != bool | None else (*flag.names, _switch(field.name))),
        help=flag.help,
        rich_help_panel=panel,
        show_default=flag.default or default is not None,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[hint, option],
    )


def _switch(name: str) -> str:
    flag = name.replace("_", "-")
    return f"--{flag}/--no-{flag}"


def _as_field(value: Any) -> Any:
    """The settings dataclasses hold tuples where the command line collects lists."""
    return tuple(value) if isinstance(value, list) else value
