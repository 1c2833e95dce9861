"""What the text of a generation does to it: a stop string ends it, a banned string takes tokens back.

A pure state machine: text of one token after another goes in; out comes the text that has become certain. Text waits
while it may turn out to be the beginning of such a string.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Watched(NamedTuple):
    """What a token's text led to."""

    text: str = ""  # that became certain
    stopped_by: str | None = None  # the stop string: `text` ends before it, and nothing may follow
    banned: str | None = None  # the banned string, as it was written
    taken_back: int = 0  # tokens that go, the one just fed included: all since the banned string began


class Waiting(NamedTuple):
    """A token whose text is not certain."""

    start: int  # of its text in what is held
    is_clean: bool  # whether the text may be cut before it: no character began earlier


class TextWatch:
    """`feed` the text of each token, `finish` when there are no more. After a stop string, feed no more."""

    def __init__(self, stops: Sequence[str] = (), banned: Sequence[str] = ()) -> None:
        """Stop strings match as they are written, banned ones in any case."""
        self._stops = tuple(stops)
        self._banned = tuple(fold(text) for text in banned)
        self._held = ""
        self._waiting: list[Waiting] = []  # while tokens may have to go
        self._is_whole = True

    @property
    def num_waiting(self) -> int:
        """Tokens that a banned string could still take back."""
        return len(self._waiting)

    def feed(self, piece: str, is_whole: bool = True) -> Watched:
        """`piece`: the text that the next token completed. `is_whole`: whether no part of a character follows it."""
        if self._banned:
            self._waiting.append(Waiting(len(self._held), self._is_whole))
        self._held, self._is_whole = self._held + piece, is_whole
        stop_start, stop = self._earliest_stop()
        banned = self._first_banned(self._held[:stop_start]) if self._banned else None
        if banned is not None:
            return self._take_back(*banned)
        if stop is not None:
            return self._end(stop_start, stop)
        return Watched(self._release())

    def finish(self, piece: str = "") -> Watched:
        """The generation ends otherwise: `piece` is what is left of its text, and nothing waits any longer."""
        self._held += piece
        start, stop = self._earliest_stop()
        if stop is not None:
            return self._end(start, stop)
        text, self._held = self._held, ""
        self._waiting.clear()
        return Watched(text)

    def _earliest_stop(self) -> tuple[int, str | None]:
        """Where the first stop string begins; the end of what is held where there is none."""
        found = [(self._held.index(stop), stop) for stop in self._stops if stop in self._held]
        return min(found) if found else (len(self._held), None)

    def _first_banned(self, text: str) -> tuple[int, int] | None:
        """Where the banned string lies that begins first."""
        folded = fold(text)
        found = [(folded.index(banned), len(banned)) for banned in self._banned if banned in folded]
        return min(found) if found else None

    def _take_back(self, start: int, length: int) -> Watched:
        first = self._token_at(start)
        banned = self._held[start : start + length]
        taken_back = len(self._waiting) - first
        self._held, self._is_whole = self._held[: self._waiting[first].start], self._waiting[first].is_clean
        del self._waiting[first:]
        return Watched(banned=banned, taken_back=taken_back)

    def _end(self, start: int, stop: str) -> Watched:
        text, self._held = self._held[:start], ""
        self._waiting.clear()
        return Watched(text, stopped_by=stop)

    def _release(self) -> str:
        """Let go of all that can be part of no string to come."""
        keep = len(self._held) - max([overlap(self._held, stop) for stop in self._stops], default=0)
        if self._banned:
            keep = min(keep, self._keep_tokens())
            self._waiting = [Waiting(token.start - keep, token.is_clean) for token in self._waiting]
        text, self._held = self._held[:keep], self._held[keep:]
        return text

    def _keep_tokens(self) -> int:
        """Keep whole tokens from the one in which a banned string may have begun; where its text starts."""
        folded = fold(self._held)
        longest = max(overlap(folded, banned) for banned in self._banned)
        may_have_begun = longest or not self._is_whole  # the first bytes of a character may begin one too
        del self._waiting[: self._token_at(len(folded) - longest) if may_have_begun else None]
        return self._waiting[0].start if self._waiting else len(self._held)

    def _token_at(self, place: int) -> int:
        """The last token that the text can be cut before, so that `place` is behind the cut."""
        return max(i for i, token in enumerate(self._waiting) if token.start <= place and (token.is_clean or i == 0))


def fold(text: str) -> str:
    """Lower case, where that is one character too: places in the text stay the same."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def overlap(text: str, string: str) -> int:
    """Length of the longest beginning of `string`, but not all of it, that `text` ends with."""
    start = text.find(string[0], max(0, len(text) - len(string) + 1))
    while start >= 0 and not string.startswith(text[start:]):
        start = text.find(string[0], start + 1)
    return len(text) - start if start >= 0 else 0
