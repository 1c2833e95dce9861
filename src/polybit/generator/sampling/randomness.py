"""Random numbers by a request's own seed and count: the same in any batch, in any order of arrival, on any device."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STRIDE = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
PICK, EXCLUDE = 0, 1  # what a token's numbers are for
GUESS, TRY = 0, 1  # what those of its guess are for, which are another stream's
GUESSES = 0x5DEECE66D5A7A3B1  # turns the key of the one into that of the other
NUMBERS_A_TOKEN = 2
BITS = 24  # fp32 holds so many below 1 without rounding up to it

Words = NDArray[np.uint64]


def uniforms(keys: Sequence[int], counts: Sequence[int]) -> NDArray[np.float32]:
    """For each pair number `count` of the stream `key`, of [0, 1).

    SplitMix64 read at any place (Steele, Lea, Flood, OOPSLA 2014); for all rows at once, as this runs at every step.
    """
    places = (np.array(counts, np.uint64) + np.uint64(1)) * STRIDE
    words = _mix(_mix(np.array(keys, np.uint64)) + places) >> np.uint64(64 - BITS)
    return words.astype(np.float32) / np.float32(1 << BITS)


def _mix(words: Words) -> Words:
    """SplitMix64's finalizer, with Stafford's constants."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
