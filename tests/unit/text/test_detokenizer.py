import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.text import Tokenizer
from unit.text.folders import byte_level, sentencepiece


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def tokenizer(request, tmp_path_factory):
    return Tokenizer.open(request.param(tmp_path_factory.mktemp("model")))


def stream(tokenizer, ids, **options):
    detokenizer = tokenizer.detokenizer(**options)
    return [*map(detokenizer.feed, ids), detokenizer.finish()]


def test_pieces_add_up_to_the_text_of_all_ids(tokenizer):
    @given(st.lists(st.integers(0, tokenizer.vocab_size)), st.booleans())
    def check(ids, special):
        assert "".join(stream(tokenizer, ids, special=special)) == tokenizer.decode(ids, special)

    check()


def test_a_continuation_adds_up_with_what_it_continues(tokenizer):
    @given(st.text("the capital of中é😀 "), st.text("the capital of中é😀 "))
    def check(text, more):
        ids, added = tokenizer.encode(text), tokenizer.encode(more)
        pieces = stream(tokenizer, added, after=ids)
        assert tokenizer.decode(ids) + "".join(pieces) == tokenizer.decode(ids + added)

    check()


def test_a_character_comes_out_whole(tokenizer):
    ids = tokenizer.encode("😀")
    pieces = stream(tokenizer, ids)
    assert len(ids) >= 4
    assert [piece for piece in pieces if piece] == ["😀"]


def test_an_unfinished_character_shows_at_the_end_only(tokenizer):
    ids = tokenizer.encode("é😀")[:-1]
    pieces = stream(tokenizer, ids)
    assert "".join(pieces[:-1]) == "é"
    assert pieces[-1] == "\ufffd"


def test_a_broken_byte_does_not_take_its_neighbours(tmp_path):
    tokenizer = Tokenizer.open(sentencepiece(tmp_path))
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in (*"é".encode(), 0xFF, *"😀".encode())]
    assert tokenizer.decode(ids) == "é\ufffd😀"


def test_special_tokens_are_dropped_or_written(tokenizer):
    ids = tokenizer.encode("the</s>")
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, special=True) == "the</s>"


class TestLeadingSpace:
    def test_the_tokenizers_own_space_is_stripped_once(self, tmp_path):
        tokenizer = Tokenizer.open(sentencepiece(tmp_path))
        the = tokenizer.id_of("▁the")
        assert tokenizer.decode([the, the]) == "the the"
        assert tokenizer.decode([tokenizer.bos_id, the]) == "the"
        assert tokenizer.decode([tokenizer.bos_id, the], special=True) == "<s> the"

    def test_a_continuation_keeps_its_space(self, tmp_path):
        tokenizer = Tokenizer.open(sentencepiece(tmp_path))
        the = tokenizer.id_of("▁the")
        assert stream(tokenizer, [the], after=[the]) == [" the", ""]

    def test_a_space_of_the_text_stays(self, tmp_path):
        tokenizer = Tokenizer.open(sentencepiece(tmp_path, lead=False))
        assert tokenizer.decode([tokenizer.id_of("▁the")]) == " the"
