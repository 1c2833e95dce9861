"""`polybit`: the commands put together, and what becomes of an error. Nothing else ends the process from here on."""

import gc
import io
import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import polybit
from polybit.cli.bench import bench
from polybit.cli.chat import chat
from polybit.cli.console import results, show_log
from polybit.cli.convert import convert
from polybit.cli.demo import demo
from polybit.cli.doctor import doctor
from polybit.cli.evaluate import evaluate
from polybit.cli.generate import generate
from polybit.cli.guard import guarded
from polybit.cli.inspect import inspect
from polybit.cli.plan import plan

app = typer.Typer(name="polybit", add_completion=False, pretty_exceptions_enable=False)
for command in (demo, chat, generate, convert, plan, inspect, evaluate, bench, doctor):
    app.command("eval" if command is evaluate else None)(command)


@app.callback(invoke_without_command=True)
def polybit_command(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results, warnings and errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Shrink language models to a few bits a weight, and talk to them on the machine you have."""
    show_log(logging.WARNING if quiet else logging.INFO)
    if version:
        results.print(polybit.__version__)
    elif context.invoked_subcommand is None:
        results.print(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line -> exit code: 0 done, 2 a mistake that the one line on stderr explains, 3 a model that
    failed its self-test, 130 interrupted."""
    return guarded(lambda: app(list(arguments), prog_name="polybit", standalone_mode=False))


def main() -> None:
    """The `polybit` program."""
    gc.freeze()  # what was imported is needed to the end, and not looked through any more, not even then
    accept_closed_input()
    accept_any_character()
    sys.exit(run(sys.argv[1:]))


def accept_closed_input() -> None:
    """It has nothing to read."""
    if sys.stdin is None:
        sys.stdin = io.StringIO()


def accept_any_character() -> None:
    """No encoding ends the program: what cannot be shown becomes `?`, and input that is no text is refused later."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
