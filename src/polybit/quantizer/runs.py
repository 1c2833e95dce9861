"""The groups of a layout in runs: what one of them changes is told to its own run at once, to all else run by run."""

from collections.abc import Iterator
from dataclasses import dataclass

from polybit.format.exl2 import Layout


@dataclass(frozen=True)
class GroupRows:
    index: int
    bits: int
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


def runs(layout: Layout, update_rows: int) -> Iterator[list[GroupRows]]:
    """A run ends with the group that makes it `update_rows` long."""
    run, start = list[GroupRows](), 0
    for index, group in enumerate(layout.groups):
        run.append(GroupRows(index, group.bits, start, start + group.rows))
        start = run[-1].stop
        if start - run[0].start >= update_rows:
            yield run
            run = []
    if run:
        yield run
