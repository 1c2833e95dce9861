"""`polybit generate` on a tiny model: streams, JSON, chat, and what it refuses."""

import io
import json
from pathlib import Path

import pytest

from unit.cli.program import Polybit

GREEDY = ("-t", "0", "-n", "6", "--ignore-eos", "--device", "cpu")


def test_streamed_and_whole_text_are_the_same(polybit_cli: Polybit, model_folder: Path) -> None:
    streamed = polybit_cli("generate", model_folder, "-p", "hello", *GREEDY)
    whole = polybit_cli("generate", model_folder, "-p", "hello", *GREEDY, "--no-stream")
    assert streamed.code == whole.code == 0
    assert streamed.out == whole.out
    assert "6 tokens" in streamed.err


def test_quiet_leaves_only_the_text(polybit_cli: Polybit, model_folder: Path) -> None:
    assert polybit_cli("-q", "generate", model_folder, "-p", "hello", *GREEDY).err == ""


def test_json_is_one_object_with_counts(polybit_cli: Polybit, model_folder: Path) -> None:
    answer = json.loads(polybit_cli("generate", model_folder, "-p", "hello", *GREEDY, "--json").out)
    plain = polybit_cli("generate", model_folder, "-p", "hello", *GREEDY)
    assert answer["text"] + "\n" == plain.out
    assert (answer["tokens"], answer["prompt_tokens"], answer["finish_reason"]) == (6, 5, "length")


@pytest.mark.parametrize("by", ["--draft", "--ngram-draft"])
def test_guesses_change_no_text_and_are_counted(polybit_cli: Polybit, model_folder: Path, by: str) -> None:
    options = ("-p", "hello hello hello", *GREEDY, "-n", "60", "--num-draft-tokens", "3")
    plain = polybit_cli("generate", model_folder, *options)
    guessed = polybit_cli("generate", model_folder, *options, by, *([model_folder] if by == "--draft" else []))
    assert guessed.out == plain.out
    assert "guesses right" in guessed.err
    assert "guesses" not in plain.err


def test_a_dash_reads_the_prompt_from_stdin(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    piped = polybit_cli("generate", model_folder, "-p", "-", *GREEDY)
    assert piped.out == polybit_cli("generate", model_folder, "-p", "hello", *GREEDY).out


def test_chat_goes_through_the_template(polybit_cli: Polybit, model_folder: Path) -> None:
    raw = polybit_cli("generate", model_folder, "-p", "system: Be.\nuser: hello\nassistant: ", *GREEDY)
    chat = polybit_cli("generate", model_folder, "-p", "hello", "--system", "Be.", *GREEDY)
    assert chat.out == raw.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", ""), "prompt is empty"),
        (("-p", "x" * 600), "context holds 512"),
        (("-p", "x", "--top-p", "0"), "top_p is 0"),
        (("-p", "x", "--device", "warp"), "warp"),
        (("-p", "x", "--dtype", "int3"), "int3"),
        (("-p", "x", "--backend", "abacus"), "abacus"),
        (("-p", "x", "--max-seq-len", "0"), "max_seq_len is 0"),
        (("-p", "x", "--num-draft-tokens", "99"), "num_draft_tokens is 99, expected a whole number from 1 to 32"),
        (("-p", "x", "--ngram-draft", "--draft", "small"), "ngram_draft is True beside the draft model small"),
    ],
)
def test_refusals_are_one_line(
    polybit_cli: Polybit, model_folder: Path, options: tuple[str, ...], message: str
) -> None:
    result = polybit_cli("-q", "generate", model_folder, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
