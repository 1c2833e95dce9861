"""What the commands share of the terminal: results go to stdout, everything else to stderr."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

results = Console(highlight=False, soft_wrap=True)
notes = Console(highlight=False, soft_wrap=True, stderr=True)

log = logging.getLogger("polybit")

Advance = Callable[[int, int], None]  # parts done, parts in all


def note(text: str) -> None:
    """A remark on what is going on, which --quiet silences."""
    log.info("%s", text)


def fail(message: str) -> None:
    """An error as one line, whatever the message holds."""
    notes.print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))


def print_tables(tables: Iterable[Table]) -> None:
    """With a blank line between them."""
    for i, table in enumerate(tables):
        if i:
            results.print()
        results.print(table)


def print_json(value: Any) -> None:
    """For other programs: no colour, no wrapping."""
    results.file.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """A bar with the time gone and the time left, on a terminal only; it vanishes when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class NoteHandler(logging.Handler):
    """Shows polybit's own log on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        notes.print(Text(prefix + record.getMessage(), style="dim"))


def show_log(level: int) -> None:
    """Route the library's log to stderr, from `level` up."""
    log.setLevel(level)
    if not any(isinstance(handler, NoteHandler) for handler in log.handlers):
        log.addHandler(NoteHandler())
