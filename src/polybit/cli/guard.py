"""What becomes of an error: one line on stderr and an exit code."""

import sys
from collections.abc import Callable

import torch
import typer

from polybit.cli.console import fail, notes
from polybit.errors import PolybitError, SelfTestFailed

DONE, MISTAKE, GARBAGE, INTERRUPTED = 0, 2, 3, 130

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # every wrong command line; typer exports this leaf only


def guarded(action: Callable[[], int | None]) -> int:
    """Run `action` -> exit code. What is not a mistake of the user's or the machine's stays an exception."""
    if sys.stdout is None:  # and what is printed goes nowhere, or into the file that is opened next
        return failed("stdout is closed, and results go there; send them to a file, or to /dev/null")
    try:
        code = action() or DONE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SelfTestFailed as error:
        fail(str(error))
        return GARBAGE
    except PolybitError as error:
        return failed(str(error))
    except UsageError as error:
        return failed(usage_message(error))
    except OSError as error:
        return failed(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = str(error).split(".")[0]
        return failed(f"out of memory ({reason}); close other programs, or use a smaller model or context")
    if code == INTERRUPTED:
        notes.print("interrupted")
    return code


def failed(message: str) -> int:
    fail(message)
    return MISTAKE


def usage_message(error: Exception) -> str:
    """What is wrong with a command line, and where its options are listed."""
    context = getattr(error, "ctx", None)
    asked = context.command_path if context is not None else "polybit"
    return f"{getattr(error, 'format_message', error.__str__)()} (see {asked} --help)"
