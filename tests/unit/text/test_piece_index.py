from hypothesis import given
from hypothesis import strategies as st

from polybit.text import PieceIndex
from polybit.text.pieces import Pieces

pieces = st.lists(st.text("abé\xff", max_size=4).map(str.encode) | st.binary(max_size=3), max_size=20)


def index(written, special=()):
    return PieceIndex(Pieces(dict(enumerate(written)), frozenset(special), strips_lead=False))


@given(pieces, st.text("abé", max_size=3).map(str.encode) | st.binary(max_size=3))
def test_tokens_by_how_they_begin(written, start):
    expected = {token for token, piece in enumerate(written) if piece and piece.startswith(start)}
    found = index(written).starting_with(start)
    assert (set(found), len(found)) == (expected, len(expected))


@given(pieces, st.text("abé", max_size=5).map(str.encode) | st.binary(max_size=4))
def test_tokens_that_a_text_begins_with(written, text):
    expected = {token for token, piece in enumerate(written) if piece and text.startswith(piece)}
    found = index(written).beginnings_of(text)
    assert (set(found), len(found)) == (expected, len(expected))


def test_special_tokens_write_nothing_but_hold_everything():
    found = index([b"a", b"<s>", b"xay", b"b"], special={1})
    assert found.starting_with(b"") == [0, 3, 2]
    assert found.starting_with(b"<") == []
    assert found.holding(["a"]) == {0, 1, 2}
    assert found.holding([]) == {1}
