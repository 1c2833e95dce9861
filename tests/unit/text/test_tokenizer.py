import logging
from contextlib import suppress
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from polybit.errors import ConfigError, RequestError
from polybit.text import Tokenizer
from unit.text.folders import byte_level, sentencepiece, write


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer.open(byte_level(tmp_path))


@pytest.mark.parametrize("family", [byte_level, sentencepiece])
def test_text_survives_encode_and_decode(family, tmp_path_factory):
    tokenizer = Tokenizer.open(family(tmp_path_factory.mktemp("model")))

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text

    check()


@pytest.mark.parametrize("family", [byte_level, sentencepiece])
def test_decode_agrees_with_the_library_on_text(family, tmp_path_factory):
    folder = family(tmp_path_factory.mktemp("model"))
    tokenizer, library = Tokenizer.open(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    @given(st.text("the capital of中é😀 <s>/▁\n"))
    def check(text):
        ids = tokenizer.encode(text, add_bos=True)
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids, special=True) == library.decode(ids, skip_special_tokens=False)

    check()


def test_byte_level_decode_agrees_with_the_library_on_any_ids(tmp_path_factory):
    folder = byte_level(tmp_path_factory.mktemp("model"))
    tokenizer, library = Tokenizer.open(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    @given(st.lists(st.integers(0, tokenizer.vocab_size + 5)))
    def check(ids):
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)

    check()


def test_special_tokens_in_text_are_parsed_only_on_request(tokenizer):
    assert tokenizer.encode("</s>") == [tokenizer.eos_id]
    assert len(tokenizer.encode("</s>", parse_special=False)) == 4


def test_bos_and_eos_are_added_on_request_and_bos_never_twice(tokenizer):
    plain = tokenizer.encode("hi")
    assert tokenizer.encode("hi", add_bos=True, add_eos=True) == [tokenizer.bos_id, *plain, tokenizer.eos_id]
    assert tokenizer.encode("<s>hi", add_bos=True) == [tokenizer.bos_id, *plain]


def test_tokens_have_names_and_ids(tokenizer):
    assert tokenizer.id_of("Ġa") == 256
    assert tokenizer.token_of(256) == "Ġa"
    assert tokenizer.id_of("nothing") is None
    assert tokenizer.token_of(10_000) is None
    assert tokenizer.token_of(-1) is None
    assert tokenizer.vocabulary["</s>"] == 258
    assert tokenizer.vocab_size == 260


@pytest.mark.parametrize(
    ("text", "finding"), [("ab\udcff", "character 2 of the text"), (5, "type int"), (None, "type NoneType")]
)
def test_what_is_not_text_is_refused(tokenizer, text, finding):
    with pytest.raises(RequestError, match=f"{finding} cannot be encoded"):
        tokenizer.encode(text)


class TestSpecialIds:
    def test_config_json_wins_and_all_ends_count(self, tmp_path):
        byte_level(tmp_path)
        write(tmp_path, "config.json", {"bos_token_id": 7, "eos_token_id": [9, 8], "pad_token_id": -1})
        write(tmp_path, "generation_config.json", {"eos_token_id": [8, 10]})
        tokenizer = Tokenizer.open(tmp_path)
        assert (tokenizer.bos_id, tokenizer.eos_id) == (7, 9)
        assert tokenizer.eos_ids == (9, 8, 10, 258)
        assert tokenizer.pad_id == 259  # the token named <pad>

    def test_text_config_is_read(self, tmp_path):
        byte_level(tmp_path)
        write(tmp_path, "config.json", {"text_config": {"eos_token_id": 3}})
        assert Tokenizer.open(tmp_path).eos_id == 3

    def test_tokenizer_config_is_the_fallback(self, tokenizer):
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (257, (258,))

    def test_a_serialized_added_token_names_an_id(self, tmp_path):
        byte_level(tmp_path, eos_token={"content": "<pad>", "special": True})
        assert Tokenizer.open(tmp_path).eos_id == 259

    def test_nothing_declared_is_nothing_assumed(self, tmp_path):
        byte_level(tmp_path, specials=(), bos_token=None, eos_token=None)
        tokenizer = Tokenizer.open(tmp_path)
        assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.adds_bos) == (None, (), None, False)

    def test_pad_falls_back_to_the_end_of_text(self, tmp_path):
        byte_level(tmp_path, specials=("<s>", "</s>"))
        assert Tokenizer.open(tmp_path).pad_id == 258

    def test_an_id_outside_the_vocabulary_is_ignored_aloud(self, tmp_path, caplog):
        byte_level(tmp_path)
        write(tmp_path, "config.json", {"eos_token_id": 999})
        with caplog.at_level(logging.WARNING):
            assert Tokenizer.open(tmp_path).eos_ids == (258,)
        assert "eos_token_id 999" in caplog.text

    @pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
    @pytest.mark.parametrize("value", ["</s>", [258, "</s>"], True, 258.0, {}])
    def test_what_is_no_id_is_refused(self, tmp_path, name, value):
        write(byte_level(tmp_path), name, {"eos_token_id": value})
        with pytest.raises(ConfigError, match=r"eos_token_id is .*, expected a token id"):
            Tokenizer.open(tmp_path)

    def test_add_bos_token_decides_over_the_post_processor(self, tmp_path):
        folder = byte_level(tmp_path)
        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        inner.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 257)])
        inner.save(str(folder / "tokenizer.json"))
        assert Tokenizer.open(folder).adds_bos
        write(folder, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": False})
        assert not Tokenizer.open(folder).adds_bos

    def test_tokens_declared_beside_tokenizer_json_are_added(self, tmp_path):
        byte_level(tmp_path, added_tokens_decoder={"260": {"content": "<|im_end|>", "special": True}})
        tokenizer = Tokenizer.open(tmp_path)
        assert tokenizer.encode("<|im_end|>") == [260]
        assert tokenizer.decode([260]) == ""


class TestBadFiles:
    def test_no_tokenizer(self, tmp_path):
        with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
            Tokenizer.open(tmp_path)

    def test_only_sentencepiece(self, tmp_path):
        (tmp_path / "tokenizer.model").write_bytes(b"\x00")
        with pytest.raises(ConfigError, match=r"only a SentencePiece tokenizer\.model"):
            Tokenizer.open(tmp_path)

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"model": 1}', "no json", '{"model": {"type": "BPE", "vocab": {}}}']
    )
    def test_broken_tokenizer(self, tmp_path, text):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizer") as caught:
            Tokenizer.open(tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "name", ["tokenizer_config.json", "config.json", "generation_config.json", "added_tokens.json"]
    )
    @pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"bos_token": "\\ud800"}'])
    def test_broken_neighbours(self, tmp_path, name, text):
        byte_level(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            Tokenizer.open(tmp_path)

    def test_text_that_is_not_utf8(self, tmp_path):
        (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="not UTF-8"):
            Tokenizer.open(tmp_path)

    def test_a_decoder_of_another_family_is_named(self, tmp_path):
        byte_level(tmp_path)
        inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        inner.decoder = tokenizers.decoders.WordPiece()
        inner.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ConfigError, match="decoder WordPiece is not supported"):
            Tokenizer.open(tmp_path)

    def test_an_added_token_with_an_impossible_id(self, tmp_path):
        byte_level(tmp_path, added_tokens_decoder={"300": {"content": "<x>"}})
        with pytest.raises(ConfigError, match=r"'<x>' has id 300, but the next free id of tokenizer\.json is 260"):
            Tokenizer.open(tmp_path)

    def test_an_id_of_thousands_of_digits_is_no_id(self, tmp_path):
        byte_level(tmp_path, added_tokens_decoder={"9" * 5000: {"content": "<x>"}})
        assert Tokenizer.open(tmp_path).id_of("<x>") is None

    def test_text_that_the_model_of_the_tokenizer_refuses(self, tmp_path):
        byte_level(tmp_path)
        inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        inner.model = tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]")
        inner.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(RequestError, match="no tokens for this text"):
            Tokenizer.open(tmp_path).encode("hello")

    def test_random_damage_never_escapes_as_another_error(self, tmp_path_factory):
        folder: Path = byte_level(tmp_path_factory.mktemp("model"))
        path = folder / "tokenizer.json"
        whole = path.read_bytes()

        @given(st.integers(0, len(whole) - 1), st.binary(min_size=0, max_size=3))
        def check(at, junk):
            path.write_bytes(whole[:at] + junk + whole[at + len(junk) + 1 :])
            with suppress(ConfigError):
                Tokenizer.open(folder)

        check()
