"""`polybit`: the commands put together, and what becomes of an error. The only place that ends the process."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import typer

import polybit
from polybit.cli.chat import chat
from polybit.cli.console import fail, notes, results, show_log
from polybit.cli.convert import convert
from polybit.cli.demo import demo
from polybit.cli.doctor import doctor
from polybit.cli.evaluate import evaluate
from polybit.cli.generate import generate
from polybit.cli.inspect import inspect
from polybit.errors import PolybitError

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # every wrong command line; typer exports this leaf only

app = typer.Typer(name="polybit", add_completion=False, pretty_exceptions_enable=False)
for command in (demo, chat, generate, convert, inspect, evaluate, doctor):
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
    """Run one command line -> exit code: 0 done, 2 a mistake that the one line on stderr explains, 130 interrupted."""
    try:
        return app(list(arguments), prog_name="polybit", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return 130
    except PolybitError as error:
        fail(str(error))
    except UsageError as error:
        fail(usage_message(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        fail(f"out of memory ({str(error).split('.')[0]}); close other programs, or use a smaller model or context")
    return 2


def usage_message(error: Exception) -> str:
    """What is wrong with a command line, and where its options are listed."""
    context = getattr(error, "ctx", None)
    asked = context.command_path if context is not None else "polybit"
    return f"{getattr(error, 'format_message', error.__str__)()} (see {asked} --help)"


def main() -> None:
    """The `polybit` program."""
    code = run(sys.argv[1:])
    if code == 130:
        notes.print("interrupted")
    sys.exit(code)
