"""Write docs/cli.md from the commands themselves.

python docs/write_cli.py          rewrite the page
python docs/write_cli.py --check  exit 1 if it is not current
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from polybit.cli.main import app

PAGE = Path(__file__).parent / "cli.md"

INTRODUCTION = """# Commands and options

Written by `docs/write_cli.py` from the commands themselves; `polybit COMMAND --help` says the same in the terminal.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 2 a mistake that one line on stderr explains, 3 a
converted model that failed its self-test, 130 interrupted. Two environment variables are read: `POLYBIT_DEVICE` (the
device where none is named) and `POLYBIT_CACHE` (the folder for downloads). Conversations of `polybit chat` are kept in
`polybit/chats` of the folder for user data, `~/.local/share` unless `XDG_DATA_HOME` says otherwise.
"""


def page() -> str:
    program = typer.main.get_command(app)
    parts = [INTRODUCTION, *section("polybit", program)]
    for name, command in program.commands.items():  # type: ignore[attr-defined]
        parts += section(f"polybit {name}", command)
    return "\n".join(parts)


def section(title: str, command: Any) -> Iterator[str]:
    """One command: how it is called, what it does, and a table for each panel of options."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [
        parameter for parameter in command.params if parameter.param_type_name == "option" and not parameter.hidden
    ]
    yield f"## {title}\n"
    words = [title, *map(place, arguments), "[OPTIONS]"]
    yield f"```\n{' '.join(words + ['COMMAND'] * hasattr(command, 'commands'))}\n```\n"
    yield f"{clean(command.help)}\n"
    if arguments:
        yield table("argument", [(argument.metavar or argument.name, "", argument.help) for argument in arguments])
    for panel in dict.fromkeys(option.rich_help_panel for option in options):
        members = [option for option in options if option.rich_help_panel == panel]
        rows = [(spelling(option), default(option), option.help) for option in members if option.name != "help"]
        if rows:
            yield table(panel or "option", rows)


def table(head: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| {head} | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {value} | {clean(text)} |" for name, value, text in rows]
    return "\n".join(lines) + "\n"


def place(argument: Any) -> str:
    """An argument in the line that says how a command is called."""
    name: str = argument.metavar or argument.name
    return name if argument.required else f"[{name}]"


def spelling(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return f"{names} / {', '.join(option.secondary_opts)}" if option.secondary_opts else names


def default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.required:
        return "required"
    if isinstance(option.default, bool):
        return "on" if option.default else ""
    return "" if option.default in (None, [], ()) else f"`{option.default}`"


def clean(text: str) -> str:
    """One paragraph a line, and no bar that would end a table's cell."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("|", "\\|")


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
