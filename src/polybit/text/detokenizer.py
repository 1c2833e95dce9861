"""Token ids to text, one at a time: each call returns the text that became certain."""

import codecs
import copy
from collections.abc import Iterable

from polybit.text.pieces import Pieces


class Detokenizer:
    """Never returns part of a character: bytes of an unfinished one wait for the next token.

    Bytes that are not UTF-8 become U+FFFD without hurting their neighbours; ids of no token add nothing.
    `special`: write special tokens out instead of dropping them. `after`: ids whose text is out already, so that a
    continuation keeps its leading space.
    """

    def __init__(self, pieces: Pieces, special: bool = False, after: Iterable[int] = ()) -> None:
        self._pieces = pieces
        self._dropped: frozenset[int] = frozenset() if special else pieces.special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = pieces.strips_lead
        self._to_skip = 0
        self._is_waiting = False  # for the rest of a character
        for token in after:
            self.feed(token)

    def feed(self, token: int) -> str:
        """The text that `token` completes; often its own, empty in the middle of a character."""
        piece = b"" if token in self._dropped else self._pieces.of.get(token, b"")
        if self._at_start and piece:
            self._at_start = False
            piece = piece.removeprefix(b" ")
        if self._to_skip:
            skipped = min(self._to_skip, len(piece))
            piece, self._to_skip = piece[skipped:], self._to_skip - skipped
        if not self._is_waiting:
            try:
                return piece.decode()  # nearly always, and much faster
            except UnicodeDecodeError:  # it holds part of a character, or bytes of none
                pass
        text = self._decoder.decode(piece)
        self._is_waiting = bool(self._decoder.getstate()[0])
        return text

    def skip(self, num_bytes: int) -> None:
        """The next bytes to come are out already."""
        self._to_skip = num_bytes

    @property
    def drops_space(self) -> bool:
        """Whether a space that comes next is the tokenizer's own."""
        return self._at_start

    @property
    def is_between_characters(self) -> bool:
        """Whether no byte waits for the rest of its character."""
        return not self._is_waiting

    def copy(self) -> "Detokenizer":
        """As it is now; neither changes the other."""
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        other._decoder.setstate(self._decoder.getstate())
        return other

    def finish(self) -> str:
        """What is left at the end: U+FFFD where a character stays unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)
