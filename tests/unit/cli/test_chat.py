"""`polybit chat` over a pipe: turns, commands, and a conversation longer than the context."""

import io
from pathlib import Path

import pytest

from polybit import generator
from polybit.cli import chat as chat_module
from polybit.generator import Engine
from unit.cli.program import Polybit

GREEDY = ("-t", "0", "-n", "4", "--ignore-eos", "--device", "cpu")


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


def test_exit_leaves_and_clear_forgets(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "one", "/clear", "two", "/exit", "three")
    assert polybit_cli("chat", model_folder, *GREEDY).code == 0
    assert prompts == [[("user", "one")], [("user", "two")]]


def test_the_oldest_turn_is_forgotten_when_the_context_is_full(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    say(monkeypatch, "a" * 120, "b" * 120, "c" * 120)
    result = polybit_cli("chat", model_folder, "--system", "Be.", *GREEDY)
    assert result.code == 0
    assert "forgetting its oldest turn" in result.err
    assert prompts[-1][0] == ("system", "Be.")
    assert prompts[-1][-1] == ("user", "c" * 120)
    assert ("user", "a" * 120) not in prompts[-1]


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[tuple[str, str]]]
) -> None:
    print_stream = chat_module.print_stream

    def interrupted(stream: generator.Stream) -> object:
        if len(prompts) > 1:
            return print_stream(stream)
        next(stream)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_module, "print_stream", interrupted)
    say(monkeypatch, "one", "two")
    assert polybit_cli("chat", model_folder, *GREEDY).code == 0
    assert [role for role, _ in prompts[1]] == ["user", "assistant", "user"]


def test_a_model_without_a_template_is_refused_before_the_first_question(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    say(monkeypatch, "hello")
    result = polybit_cli("-q", "chat", tmp_path, "--device", "cpu")
    assert (result.code, result.out) == (2, "")
    assert "no chat template" in result.err
