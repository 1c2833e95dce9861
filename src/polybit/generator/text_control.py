"""From tokens to text, and what the text says about the tokens to come.

A state machine that knows no model: a token goes in; out come tokens to take back, or the end. Text that is certain
gathers in `pieces`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from polybit.generator.filters import Filter
from polybit.generator.sampling.mask import TokenMask
from polybit.generator.stopping import TextWatch, Watched
from polybit.text import Detokenizer

FinishReason = Literal["stop", "length"]


class Verdict(NamedTuple):
    """What follows from one token, beside text."""

    taken_back: int = 0  # tokens that go, this one included; an end token goes alone
    suppressed: str | None = None  # the banned string that they would have written
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None  # the end token or stop string; None where the filter wants no more


GO_ON = Verdict()


@dataclass(frozen=True)
class Limits:
    """When a generation may end, and when it must."""

    ends: frozenset[int]  # token ids that end it
    most: int  # tokens
    least: int = 0  # tokens before which no end token is allowed


class TextControl:
    """`feed` each token, and let the next be none of `blocked`, and one of `allowed()` where that is given."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        limits: Limits,
        stops: Sequence[str] = (),
        banned: Sequence[str] = (),
        filter_: Filter | None = None,
        first: TokenMask | None = None,
    ) -> None:
        """`first`: the only ones that the first token may be; None: any that the filter allows."""
        self.pieces: list[str] = []  # what each token made certain of the text; often its own, may be empty
        self._detokenizer = detokenizer
        self._limits = limits
        self._watch = TextWatch(stops, banned) if stops or banned else None
        self._can_take_back = bool(banned)
        self._filter = filter_
        self._first = first
        self.restricts = bool(banned or filter_ or first is not None or limits.least)  # ever, so that most need not ask
        self._num_tokens = 0
        self._num_foreseen = 0  # of those, that have not come yet
        self._fed: list[tuple[int, Detokenizer]] = []  # that may be taken back, and the state before each
        self._tried: dict[int, set[int]] = {}  # tokens that led to a banned string, by place

    # ---- what the next token may be

    @property
    def blocked(self) -> frozenset[int]:
        tried = self._tried.get(self._num_tokens, ())
        early = self._limits.ends if self._num_tokens < self._limits.least else ()
        return frozenset(tried).union(early)

    @property
    def num_held(self) -> int:
        """Tokens that may still be taken back."""
        return len(self._fed)

    def allowed(self) -> TokenMask | None:
        if self._num_tokens == 0 and self._first is not None:
            return self._first
        return None if self._filter is None else self._filter.allowed()

    @property
    def num_left(self) -> int:
        """Tokens until the generation must end."""
        return self._limits.most - self._num_tokens

    # ---- what would be if a token came

    def foresee(self, token: int) -> bool:
        """Look at the place after `token`, one that is allowed; False, and stay, where the generation would end there.

        It may end there all the same, or take tokens back: text is not looked at.
        """
        if token in self._limits.ends or self.num_left <= 1:
            return False
        if self._filter is not None:
            self._filter.accept(token)
            if self._filter.is_done:
                self._filter.rewind(1)
                return False
        self._num_tokens += 1
        self._num_foreseen += 1
        return True

    def look_back(self) -> None:
        """To the place of the next token."""
        count, self._num_foreseen = self._num_foreseen, 0
        self._num_tokens -= count
        if self._filter is not None and count:
            self._filter.rewind(count)

    # ---- what a token does

    def feed(self, token: int) -> Verdict:
        if token in self._limits.ends:
            return self._end("stop", token)._replace(taken_back=1)
        if self._watch is not None:
            return self._feed_watched(token, self._watch)
        return self._after(token, self._detokenizer.feed(token))

    def _feed_watched(self, token: int, watch: TextWatch) -> Verdict:
        if self._can_take_back:
            self._fed.append((token, self._detokenizer.copy()))
        piece = self._detokenizer.feed(token)
        watched = watch.feed(piece, not self._can_take_back or self._detokenizer.is_between_characters)
        if watched.taken_back:
            return self._take_back(watched)
        if watched.stopped_by is not None:
            self._num_tokens += 1
            self._fed.clear()
            self.pieces.append(watched.text)
            return Verdict(finish_reason="stop", stopped_by=watched.stopped_by)
        verdict = self._after(token, watched.text)
        self._forget_certain(watch)
        return verdict

    def _after(self, token: int, text: str) -> Verdict:
        self._num_tokens += 1
        if self._filter is not None:
            self._filter.accept(token)
            if self._filter.is_done:
                return self._end("stop", None, text=text)
        if self._num_tokens >= self._limits.most:
            return self._end("length", None, text=text)
        self.pieces.append(text)
        return GO_ON

    def _take_back(self, watched: Watched) -> Verdict:
        """To before the token in which the banned string began, which is not to come there again."""
        first = len(self._fed) - watched.taken_back
        token, self._detokenizer = self._fed[first]
        del self._fed[first:]
        self._num_tokens -= watched.taken_back - 1
        if self._filter is not None:
            self._filter.rewind(watched.taken_back - 1)
        self._tried = {place: tried for place, tried in self._tried.items() if place <= self._num_tokens}
        self._tried.setdefault(self._num_tokens, set()).add(token)
        return Verdict(taken_back=watched.taken_back, suppressed=watched.banned)

    def _forget_certain(self, watch: TextWatch) -> None:
        """What cannot be taken back any more."""
        if self._can_take_back:
            del self._fed[: len(self._fed) - watch.num_waiting]
            oldest = self._num_tokens - len(self._fed)
            self._tried = {place: tried for place, tried in self._tried.items() if place >= oldest}

    def _end(self, reason: FinishReason, stopped_by: int | None, text: str = "") -> Verdict:
        """All that waits comes out. It may still hold a stop string."""
        self._fed.clear()
        last = self._detokenizer.finish()
        rest = Watched(last) if self._watch is None else self._watch.finish(last)
        self.pieces.append(text + rest.text)
        if rest.stopped_by is not None:
            return Verdict(finish_reason="stop", stopped_by=rest.stopped_by)
        return Verdict(finish_reason=reason, stopped_by=stopped_by)
