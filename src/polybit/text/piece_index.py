"""Tokens found by the bytes that they write: exactly these, beginning with these, or holding a text."""

from bisect import bisect_left
from collections.abc import Iterable

from polybit.text.pieces import Pieces

LAST_BYTE = b"\xff"


class PieceIndex:
    """Over the tokens that stand for text; special ones write none."""

    def __init__(self, pieces: Pieces) -> None:
        self._special = pieces.special
        self.written = {token: piece for token, piece in pieces.of.items() if piece and token not in pieces.special}
        written = sorted((piece, token) for token, piece in self.written.items())
        self._pieces = [piece for piece, _ in written]
        self._tokens = [token for _, token in written]
        self._holding: dict[frozenset[str], frozenset[int]] = {}
        self.longest = max(map(len, self._pieces), default=0)  # bytes of a piece

    def starting_with(self, start: bytes) -> list[int]:
        """Tokens whose piece begins with `start`, itself included."""
        stop = start + LAST_BYTE * (self.longest + 1)
        return self._tokens[bisect_left(self._pieces, start) : bisect_left(self._pieces, stop)]

    def beginnings_of(self, text: bytes) -> list[int]:
        """Tokens whose piece `text` begins with, itself included."""
        found: list[int] = []
        for length in range(1, min(self.longest, len(text)) + 1):
            piece = text[:length]
            first = bisect_left(self._pieces, piece)
            last = bisect_left(self._pieces, piece + b"\x00", first)  # the next larger bytes there are
            found += self._tokens[first:last]
        return found

    def holding(self, texts: Iterable[str]) -> frozenset[int]:
        """Special tokens, and those whose piece holds one of `texts`. Remembered, as it looks at all of them."""
        wanted = frozenset(texts)
        if wanted not in self._holding:
            marks = [text.encode() for text in wanted]
            pairs = zip(self._pieces, self._tokens, strict=True)
            found = [token for piece, token in pairs if any(mark in piece for mark in marks)]
            self._holding[wanted] = self._special | frozenset(found)
        return self._holding[wanted]
