"""An answer in Markdown on a terminal, while it is being written."""

import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from polybit.chat.blocks import Blocks, parse

REFRESH_SECONDS = 0.1  # drawing takes time from the model
CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class MarkdownView:
    """`with MarkdownView(console) as show: show(piece)`. What is settled scrolls away, the rest is drawn anew."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._blocks = Blocks()
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._drawn = 0.0  # when

    def __call__(self, piece: str) -> None:
        """Characters that steer a terminal are left out."""
        settled = self._blocks.feed(piece.translate(CONTROLS))
        self._draw(bool(settled))
        self._settle(settled)

    def __enter__(self) -> "MarkdownView":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        self._settle(self._blocks.pending)

    def _draw(self, at_once: bool) -> None:
        now = time.monotonic()
        if at_once or now - self._drawn > REFRESH_SECONDS:
            self._drawn = now
            self._live.update(Tail(markdown(self._blocks.pending)), refresh=not at_once)

    def _settle(self, source: str) -> None:
        if source.strip():
            self._console.print(markdown(source))
            self._console.print()


class Tail:
    """The last lines of something, as many as the terminal has: what is above them cannot be drawn anew."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        lines = console.render_lines(self._whole, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


def markdown(source: str) -> Markdown:
    """Links with their addresses, code in colours, everything else as it was written."""
    made = Markdown(source, hyperlinks=False)
    made.parsed = parse(source)
    return made
