"""A text as the samplers read it: token ids in one growing array, on the host, where tokens are known first."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Weights = NDArray[np.float32]
Changes = tuple[NDArray[np.int64], Weights]  # tokens, and what is added to the logit of each


class History:
    """Appended to, cut off, and read without a copy."""

    def __init__(self, tokens: Sequence[int] | Ids) -> None:
        self._length = len(tokens)
        self._ids = np.empty(max(64, 2 * len(tokens)), np.int32)
        self._ids[: self._length] = tokens
        self._latest: list[int] = []  # tokens after those, as most texts are never read

    def __len__(self) -> int:
        return self._length + len(self._latest)

    def append(self, token: int) -> None:
        self._latest.append(token)

    def truncate(self, length: int) -> None:
        self._take_in()
        self._length = length

    def last(self, count: int) -> Ids:
        """The last `count` tokens, or all there are; a view that is good until the next change."""
        self._take_in()
        return self._ids[max(0, self._length - count) : self._length]

    def all(self) -> Ids:
        return self.last(len(self))

    def _take_in(self) -> None:
        length = len(self)
        if length > len(self._ids):
            self._ids = np.concatenate([self._ids[: self._length], np.empty(length, np.int32)])
        self._ids[self._length : length] = self._latest
        self._length = length
        self._latest.clear()

    def copy(self) -> "History":
        return History(self.all())


def fading(length: int, full: int, decay: int) -> Weights:
    """Weights [length] of a text's last tokens, in their order: 1 for the last `full`, then `decay` that fade to 0.

    Where `full` is 0, all weigh 1.
    """
    if not full or not decay:
        return np.ones(length, np.float32)
    distance = np.arange(length - 1, -1, -1, dtype=np.float32)
    return ((full + decay - distance) / (decay + 1)).clip(0, 1).astype(np.float32)


def repeats(text: Ids, breakers: Collection[int], shortest: int, longest: int) -> dict[int, int]:
    """Each token that would go on with a repetition, and how many tokens before it stand in an earlier place too.

    Counted from `shortest` to `longest`, and never across one of `breakers`.
    """
    last = len(text) - 1
    found: dict[int, int] = {}
    ends = np.flatnonzero(text[:last] == text[last]) if last > 0 else np.empty(0, np.int64)
    length = 1  # of the match between what ends at `ends` and what ends the text
    while len(ends) and int(text[last - length + 1]) not in breakers:
        if length >= shortest:
            found |= dict.fromkeys(np.unique(text[ends + 1]).tolist(), length)
        if length == longest or length > last:
            break
        ends = ends[ends >= length]
        ends = ends[text[ends - length] == text[last - length]]
        length += 1
    return {token: match for token, match in found.items() if token not in breakers}


def changes(by_token: Mapping[int, float]) -> Changes:
    return np.fromiter(by_token, np.int64), np.fromiter(by_token.values(), np.float32)
