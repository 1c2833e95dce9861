"""A progress bar for programs, which is the command line's own."""

from collections.abc import Callable
from contextlib import AbstractContextManager


def progress_bar(what: str = "answers") -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar on a terminal, for what takes a `progress`: `with polybit.progress_bar() as tell: ...(progress=tell)`."""
    from polybit.cli.console import progress  # not above: most programs have no use for what draws on terminals

    return progress(what)
