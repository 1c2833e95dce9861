"""What a text's own past says about how it goes on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.generator.ngram import SHORTEST, continuation


def after(text, count=3, longest=4):
    return continuation(np.array([ord(char) for char in text], np.int32), count, longest)


def spelt(text, **options):
    return "".join(map(chr, after(text, **options)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the cat and the ", "cat"),
        ("xabc yabc zab", "c z"),  # the last time counts
        ("1abcd 2abce abcd", " 2a"),  # but more of it before that
        ("abab", "aba"),  # it goes round
        ("aaaa", "aaa"),
        ("abcdef", ""),
        ("a b a", ""),  # one token says nothing
        ("a", ""),
        ("", ""),
    ],
)
def test_goes_on_as_it_did(text, found):
    assert spelt(text) == found


def test_compares_no_more_than_it_is_told():
    text = "1abcd 2bcde abcd"
    assert spelt(text, longest=4) == " 2b"
    assert spelt(text, longest=3) == "e a"
    assert spelt("a b a", longest=1, count=2) == " b"


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5), st.integers(1, 6))
def test_as_a_search_written_out(text, count, longest):
    best = max(
        (
            (length, end)
            for length in range(1, longest + 1)
            for end in range(length, len(text))
            if text[end - length : end] == text[len(text) - length :]
        ),
        default=(0, 0),
    )
    length, end = best
    expected = [] if length < min(SHORTEST, longest) else [text[end + i % (len(text) - end)] for i in range(count)]
    assert continuation(np.array(text, np.int32), count, longest) == expected
