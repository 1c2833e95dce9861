"""`polybit chat` over a pipe: turns, commands, saved conversations, and one longer than the context."""

import io
import json
import re
from pathlib import Path

import pytest

from polybit import env, generator
from polybit.cli import talk
from polybit.generator import Engine
from unit.cli.program import Polybit

GREEDY = ("-t", "0", "-n", "4", "--ignore-eos", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The messages of every answer that is asked for."""
    seen: list[list[tuple[str, str]]] = []
    stream_chat = Engine.stream_chat

    def record(self: Engine, messages: list[dict[str, str]], *rest: object) -> object:
        seen.append([(message["role"], message["content"]) for message in messages])
        return stream_chat(self, messages, *rest)

    monkeypatch.setattr(Engine, "stream_chat", record)
    return seen


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_answers_become_part_of_the_conversation(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "hello", "", "again")
    result = polybit_cli("chat", model_folder, "--system", "Be.", *GREEDY)
    assert result.code == 0
    assert prompts[0] == [("system", "Be."), ("user", "hello")]
    first_answer = prompts[1][2]
    assert prompts[1] == [*prompts[0], ("assistant", first_answer[1]), ("user", "again")]
    assert result.out.startswith(first_answer[1] + "\n")


def test_guesses_change_no_answer(polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for options in ((), ("--ngram-draft",), ("--draft", model_folder)):
        say(monkeypatch, "hello", "again")
        said.append(polybit_cli("chat", model_folder, *options, *GREEDY).out)
    assert said == said[:1] * 3


def test_commands_are_lines_too(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "one", "/clear", '"""two', 'lines"""', "/edit three", "/help", "/exit", "four")
    result = polybit_cli("-q", "chat", model_folder, *GREEDY)
    assert result.code == 0
    assert prompts == [[("user", "one")], [("user", "two\nlines")], [("user", "three")]]
    assert "/retry" in result.err
    assert "/retry" not in result.out


def test_answers_alone_go_to_stdout_and_how_long_they_took_to_stderr(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "hello", "hello again")
    alone = polybit_cli("-q", "chat", model_folder, *GREEDY)
    say(monkeypatch, "hello", "hello again")
    told = polybit_cli("chat", model_folder, *GREEDY)
    assert told.out == alone.out
    assert "Ctrl-" not in told.err
    assert alone.err == ""
    found = re.findall(r"4 tokens, [\d.]+ a second; prompt (\d+) tokens, (\d+) cached, [\d.]+ s\n", told.err)
    (_, first_cached), (second, second_cached) = [tuple(map(int, counts)) for counts in found]
    assert first_cached == 0
    assert 0 < second_cached < second
    assert told.err.count("cut after 4 tokens; /set max_tokens") == 2


def test_a_full_context_waits_for_a_word_and_over_a_pipe_ends_it(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "a" * 120, "b" * 120, "c" * 120, "/forget")
    result = polybit_cli("-q", "chat", model_folder, *GREEDY)
    assert result.code == 2
    assert result.err.startswith("error: the conversation fills the context; /forget")
    assert result.err.count("\n") == 1
    assert len(prompts) == 2


def test_with_forget_the_oldest_turn_goes_with_a_word(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "a" * 120, "b" * 120, "c" * 120)
    result = polybit_cli("chat", model_folder, "--system", "Be.", "--forget", *GREEDY)
    assert result.code == 0
    assert "the context is full: forgot the oldest turn" in result.err
    assert prompts[-1][0] == ("system", "Be.")
    assert prompts[-1][-1] == ("user", "c" * 120)
    assert ("user", "a" * 120) not in prompts[-1]


def test_an_answer_that_the_context_ends_says_so(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "a" * 300)
    result = polybit_cli("chat", model_folder, "-t", "0", "-n", "1000", "--ignore-eos", "--device", "cpu")
    assert "cut: the context of 512 tokens is full" in result.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/dance", "there is no command /dance"),
        ("/load nothing", "there is no conversation 'nothing'"),
        ("/set top_p 7", "top_p is 7.0"),
        ("/edit", "over a pipe /edit needs the new words"),
        ("x" * 600, "the conversation fills the context"),
        ("\udcff", "no text"),
    ],
)
def test_over_a_pipe_the_first_mistake_ends_it(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    say(monkeypatch, "hello", line, "hello")
    result = polybit_cli("-q", "chat", model_folder, *GREEDY)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err


def test_a_conversation_goes_on_in_another_process_of_that_name(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "/save trip", "/set top_k 3", "one")
    assert polybit_cli("chat", model_folder, "--system", "Be.", *GREEDY).code == 0
    say(monkeypatch, "two", "/set top_k", "/set max_tokens")
    result = polybit_cli("chat", model_folder, "--resume", "trip", "-n", "5", "--device", "cpu")
    assert result.code == 0
    assert "trip, turns so far: 1; the last question: one" in result.err
    assert [message for message in prompts[1] if message[0] != "assistant"] == [
        ("system", "Be."),
        ("user", "one"),
        ("user", "two"),
    ]
    assert "top_k is 3" in result.err
    assert "max_tokens is 5" in result.err
    kept = json.loads((env.data_dir() / "chats" / "trip.json").read_bytes())
    assert [message["role"] for message in kept["messages"]] == ["system", *["user", "assistant"] * 2]


def test_a_name_that_is_not_there_is_refused_before_anything_is_loaded(polybit_cli: Polybit) -> None:
    result = polybit_cli("chat", "no-such-model", "--resume", "trip")
    assert result.code == 2
    assert "there is no conversation 'trip'" in result.err


def test_ctrl_c_keeps_what_was_said_and_over_a_pipe_ends_it(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(stream: generator.Stream) -> None:
        next(stream)
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "print_pieces", interrupted)
    say(monkeypatch, "/save trip", "one", "two")
    result = polybit_cli("chat", model_folder, *GREEDY)
    assert result.code == 130
    kept = json.loads((env.data_dir() / "chats" / "trip.json").read_bytes())
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    assert kept["messages"][1]["content"]


def test_a_model_without_a_template_is_refused_before_the_first_question(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    say(monkeypatch, "hello")
    result = polybit_cli("-q", "chat", tmp_path, "--device", "cpu")
    assert (result.code, result.out) == (2, "")
    assert "no chat template" in result.err
