import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from polybit.errors import FormatError, UnsupportedModel
from polybit.format.gguf_header import Metadata
from polybit.format.gguf_tokenizer import Vocabulary, make_tokenizer, scored_merges
from unit.format.gguf_cases import BYTE, NORMAL, UNUSED, byte_level_tokenizer, sentence_piece_tokenizer

CONFIG = {"max_position_embeddings": 256}


def build(values: dict[str, Any], strips_after_special: bool = False) -> tuple[Tokenizer, dict[str, Any]]:
    metadata = Metadata("m.gguf", {f"tokenizer.{name}": value for name, value in values.items()})
    made, config = make_tokenizer(metadata, CONFIG, strips_after_special)
    return Tokenizer.from_str(json.dumps(made)), config


def byte_level(**changes: Any) -> Tokenizer:
    return build(byte_level_tokenizer() | {f"ggml.{name}": value for name, value in changes.items()})[0]


def sentence_piece(**changes: Any) -> Tokenizer:
    return build(sentence_piece_tokenizer() | {f"ggml.{name}": value for name, value in changes.items()})[0]


TEXT = "the  12345 état\r\n\n 🙂<tag>x<|end|>"


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"])
def test_byte_level_text_round_trips(pre: str) -> None:
    tokenizer = byte_level(pre=pre)
    assert tokenizer.decode(tokenizer.encode(TEXT).ids, skip_special_tokens=False).removeprefix("<|end|>") == TEXT


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["123", "4"]),
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
    ],
)
def test_digits_are_cut_as_the_pre_tokenizer_says(pre: str, pieces: list[str]) -> None:
    assert byte_level(pre=pre).encode("1234", add_special_tokens=False).tokens == pieces


def test_special_and_user_defined_tokens_are_found_in_text() -> None:
    encoding = byte_level().encode(" the<tag><|end|>")
    assert encoding.tokens == ["Ġthe", "<tag>", "<|end|>"]
    assert byte_level().decode(encoding.ids) == " the<tag>"  # only special ones are left out


def test_qwen_composes_accents() -> None:
    tokenizer = byte_level(pre="qwen2")
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_ids_that_the_vocabulary_marks_unused_are_left_out() -> None:
    values = byte_level_tokenizer()
    values["ggml.tokens"] = [*values["ggml.tokens"], "[PAD262]"]
    values["ggml.token_type"] = [*values["ggml.token_type"], UNUSED]
    assert build(values)[0].token_to_id("[PAD262]") is None


@pytest.mark.parametrize(
    ("pre", "stored", "added"),
    [("qwen2", None, False), ("llama-bpe", None, True), ("qwen2", True, True), ("llama-bpe", False, False)],
)
def test_a_bos_goes_in_front_where_the_file_or_its_kind_says_so(pre: str, stored: bool | None, added: bool) -> None:
    values = byte_level_tokenizer() | {"ggml.pre": pre} | ({} if stored is None else {"ggml.add_bos_token": stored})
    tokenizer, config = build(values)
    assert (tokenizer.encode("a").tokens[0] == "<|end|>") is added
    assert config["add_bos_token"] is added


def test_an_eos_goes_behind_where_the_file_says_so() -> None:
    assert byte_level(add_eos_token=True).encode("a").tokens == ["a", "<|end|>"]


def test_tokenizer_config_names_the_special_tokens() -> None:
    config = build(byte_level_tokenizer())[1]
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == (
        "<|end|>",
        "<|end|>",
        "{{ messages }}",
    )
    assert "pad_token" not in config
    assert config["model_max_length"] == 256


# ---- SentencePiece


def test_pieces_merge_best_first() -> None:
    assert sentence_piece().encode("the abcab").tokens == ["<s>", "▁the", "▁", "abc", "ab"]


@pytest.mark.parametrize(("prefixed", "text"), [(True, "the abé🙂\n ab"), (False, "the  abé🙂\n ab")])
def test_sentence_piece_text_round_trips(prefixed: bool, text: str) -> None:
    tokenizer = sentence_piece(add_space_prefix=prefixed)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_characters_without_a_piece_become_bytes() -> None:
    assert sentence_piece(add_space_prefix=False, add_bos_token=False).encode("é").tokens == ["<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("spelled", ["  ", "▁▁"])
def test_user_defined_runs_of_spaces_are_taken_whole(spelled: str) -> None:
    values = sentence_piece_tokenizer() | {"ggml.add_space_prefix": False, "ggml.add_bos_token": False}
    values["ggml.tokens"] = [*values["ggml.tokens"][:-1], spelled]
    tokenizer = build(values)[0]
    assert tokenizer.encode("a  the").tokens == ["a", "  ", "t", "he"]
    assert tokenizer.decode(tokenizer.encode("a  the").ids) == "a  the"


def test_some_families_swallow_the_space_after_a_special_token() -> None:
    tokenizer = build(sentence_piece_tokenizer() | {"ggml.add_bos_token": False}, strips_after_special=True)[0]
    assert tokenizer.encode("</s> \n a").ids == tokenizer.encode("</s>a").ids


def test_merges_join_ordinary_pieces_only() -> None:
    vocabulary = Vocabulary(["a", "b", "ab", "<0x61>", "bb"], [NORMAL, NORMAL, NORMAL, BYTE, UNUSED])
    assert scored_merges(vocabulary, [0.0, 0.0, -1.0, 0.0, 0.0]) == [["a", "b"]]


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "error", "finding"),
    [
        ({"model": "bert"}, UnsupportedModel, "tokenizers of kind 'bert' are not supported"),
        ({"pre": "command-r"}, UnsupportedModel, r"pre-tokenizer 'command-r' is not supported \(supported: gpt-2,"),
        ({"merges": ["x"]}, FormatError, "merge 'x' is not of two tokens into one"),
        ({"merges": ["a b"]}, FormatError, "merge 'a b' is not of two tokens"),
        ({"token_type": [1]}, FormatError, "token_type is a list of 1, expected 263, one for each token"),
        ({"bos_token_id": 263}, FormatError, "bos_token_id is 263, expected less than the 263 tokens"),
        ({"tokens": [1, 2]}, FormatError, "tokens is a list of mixed or other things"),
        ({"add_bos_token": 1}, FormatError, "add_bos_token is 1, expected true or false"),
    ],
)
def test_byte_level_damage_is_named(changes: dict[str, Any], error: type[Exception], finding: str) -> None:
    with pytest.raises(error, match=finding):
        byte_level(**changes)


def test_scores_must_cover_the_vocabulary() -> None:
    with pytest.raises(FormatError, match="scores is a list of 1, expected 274, one for each token"):
        sentence_piece(scores=[0.0])
