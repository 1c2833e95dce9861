"""How a text may go on, by its own past: integers only."""

import numpy as np
from numpy.typing import NDArray

from polybit.generator.sampling.history import Ids

Places = NDArray[np.int64]

SHORTEST = 2  # tokens that must have stood there before; one alone says little


def continuation(text: Ids, count: int, longest: int) -> list[int]:
    """`count` tokens that may follow `text`, or none.

    They are what followed where most of its last tokens, from SHORTEST to `longest`, stood before, the last time they
    did. What reaches the end of the text goes round, as a text that repeats itself does.
    """
    ends: Places = np.arange(len(text) - 1)
    matched = 0
    while matched < longest and len(ends) and len(further := _matching(text, ends, matched)):
        ends, matched = further, matched + 1
    if matched < min(SHORTEST, longest):
        return []
    following = text[int(ends[-1]) + 1 :]
    tokens: list[int] = np.resize(following[:count], count).tolist()
    return tokens


def _matching(text: Ids, ends: Places, matched: int) -> Places:
    """Of places that match the end of the text in so many tokens, those that do in one more."""
    inside: Places = ends[ends >= matched]
    longer: Places = inside[text[inside - matched] == text[len(text) - 1 - matched]]
    return longer
