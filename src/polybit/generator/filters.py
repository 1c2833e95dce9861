"""What the next token may be, so that the text as a whole is what was asked for.

Pure state machines over tokens: `accept` each, `rewind` some. Grammars and schemas are in structured.py.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from polybit.generator.sampling.mask import TokenMask, mask_of
from polybit.text import PieceIndex


class Filter(Protocol):
    """Of one generation."""

    def allowed(self) -> TokenMask | None:
        """The tokens that may come next, and where the text may end those that end it; None: any."""

    @property
    def is_done(self) -> bool:
        """Whether nothing may come any more."""

    def accept(self, token: int) -> None:
        """The token that came."""

    def rewind(self, num_tokens: int) -> None:
        """The last tokens go."""


class OneOf:
    """The text is one of `options`; or, if `is_open`, begins with one and goes on freely."""

    def __init__(
        self,
        options: Sequence[str],
        index: PieceIndex,
        vocab_size: int,
        ends: Collection[int] = (),
        is_open: bool = False,
        drops_space: bool = False,
    ) -> None:
        """`ends`: tokens that end the text. `drops_space`: a space in front of it is the tokenizer's own."""
        self._options = [option.encode() for option in options]
        self._index = index
        self._vocab_size = vocab_size
        self._ends = ends
        self._is_open = is_open
        self._drops_space = drops_space
        self._written = [b""]  # before the first token, and after each

    def allowed(self) -> TokenMask | None:
        if self._is_satisfied and self._is_open:
            return None
        tokens = [token for rest in self._rests() for token in self._leading_to(rest)]
        return mask_of([*tokens, *(self._ends if self._is_satisfied else ())], self._vocab_size)

    @property
    def is_done(self) -> bool:
        return self._is_satisfied and not self._is_open and not self._rests()

    def accept(self, token: int) -> None:
        piece = self._index.written.get(token, b"")
        if self._is_first and piece:
            piece = piece.removeprefix(b" ")
        self._written.append(self._written[-1] + piece)

    def rewind(self, num_tokens: int) -> None:
        del self._written[len(self._written) - num_tokens :]

    @property
    def _is_first(self) -> bool:
        """Whether a space in front would be the tokenizer's."""
        return self._drops_space and len(self._written) == 1

    @property
    def _is_satisfied(self) -> bool:
        written = self._written[-1]
        return any(written.startswith(option) if self._is_open else written == option for option in self._options)

    def _rests(self) -> set[bytes]:
        """What is missing of each option that is still possible."""
        written = self._written[-1]
        rests = {option[len(written) :] for option in self._options if option.startswith(written)} - {b""}
        return rests | {b" " + rest for rest in rests} if self._is_first else rests

    def _leading_to(self, rest: bytes) -> list[int]:
        beginnings = self._index.beginnings_of(rest)
        return beginnings + self._index.starting_with(rest) if self._is_open else beginnings
