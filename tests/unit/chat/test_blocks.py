"""Markdown in pieces: nothing is lost, however it is cut, and blocks come out as soon as they are whole."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.chat.blocks import PARSER, Blocks, parse

LINES = st.sampled_from(
    [
        "word",
        "",
        "- item",
        "  more",
        "1. first",
        "```",
        "```python",
        "x = [",
        "# head",
        "a|b",
        "-|-",
        "---",
        "> say",
        "    ",
    ]
)
DOCUMENTS = st.lists(LINES, max_size=14).map("\n".join)


def settled(source: str, cuts: list[int]) -> tuple[list[str], str]:
    blocks = Blocks()
    edges = [0, *sorted(min(cut, len(source)) for cut in cuts), len(source)]
    out = [blocks.feed(source[begin:end]) for begin, end in pairwise(edges)]
    return [text for text in out if text], blocks.pending


@given(DOCUMENTS, st.lists(st.integers(0, 80), max_size=20))
def test_nothing_is_lost_and_every_part_means_what_it_means_in_the_whole(source: str, cuts: list[int]) -> None:
    parts, pending = settled(source, cuts)
    assert "".join(parts) + pending == source
    together = "".join(PARSER.render(part) for part in (*parts, pending))
    assert together == PARSER.render(source)


@pytest.mark.parametrize(
    ("source", "parts", "pending"),
    [
        ("one\n\ntwo\n", ["one\n\n"], "two\n"),
        ("one\ntwo", [], "one\ntwo"),
        ("- a\n\n- b\n\n  more", [], "- a\n\n- b\n\n  more"),
        ("```\na\n\nb\n", [], "```\na\n\nb\n"),
        ("```\na\n\nb\n```\nafter\n", ["```\na\n\nb\n```\n"], "after\n"),
        ("# head\ntext\n", ["# head\n"], "text\n"),
    ],
)
def test_what_may_go_on_is_pending(source: str, parts: list[str], pending: str) -> None:
    got, left = settled(source, list(range(len(source))))
    assert ("".join(got), left) == ("".join(parts), pending)


def test_html_and_line_breaks_stay() -> None:
    (inline,) = (token for token in parse("<think>\nVec<T>") if token.type == "inline")
    assert [(part.type, part.content) for part in inline.children or ()] == [
        ("text", "<think>"),
        ("hardbreak", ""),
        ("text", "Vec<T>"),
    ]
