"""Text that waits until it can no longer turn out to be the beginning of a stop string."""

from collections.abc import Sequence


class HeldText:
    """Feed pieces of text, get back what may be shown. After a match, `matched` is the stop string: feed no more."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """The text that became certain: all before a stop string, or all that cannot be part of one."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if found:
            start, self.matched = min(found)
            self._held = ""
            return text[:start]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What is still held when the generation ends otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
