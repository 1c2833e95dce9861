"""Every script of examples/ runs as it is, on a tiny model, and prints what it is about."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from random_model import write_random_model
from unit.text.folders import byte_level

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "generate": r"48 tokens, [\d.]+ a second; ended by: length",
    "stream": r"\S",
    "chat": r"\d+ tokens asked, 0 of them read before: .*\n\d+ tokens asked, \d\d of them read before: ",
    "many_prompts": r"The square of 0 is.*(\n.*)*The square of 39 is",
    "own_parameters": r"the same alone: True",
    "guidance": r"scale 1.0: .*\nscale 1.5: .*\nscale 3.0: ",
    "structured": r"read as JSON: {'colour': '(red|green)', 'count': \d}",
    "banned": r"without '.*': .*\ntaken back: \('",
    "told": r"('.*: [\d.]+%, drawn at [\d.]+% from \[\(.*\n){6}",
    "own_filter": r"short words: ([a-zA-Z]{0,4} ?)*\n$",
    "shared_beginning": r"bound\? 0 of 8\d\d .*\n.*leave\? 7\d\d of 8\d\d .*\n.*knew\? 7\d\d of 8\d\d ",
    "quantized_cache": r"fp16: .*\nq8: .*\nq4: ",
    "speculative": r"n-grams: .* same text: True\ndraft model: ([1-9]\d*) of \1 guesses right; same text: True",
    "bad_prompts": r"answered: .*\nrefused: the prompt is empty.*\nrefused: the prompt has \d{6,} tokens",
    "leave_early": r"left after \d tokens\nthe other had all of its 12",
    "threads": r"cat .*(\n.*)*owl ",
    "event_loop": r"(Red|Green) \.\.\. ",
    "own_loop": r"step \d+, stream 1: (.*\n)*.*step \d+, stream 2: ",
    "exllamav2_jobs": r"(Alice|Bob|Carol) said ",
    "exllamav2_async": r"Alice '(.*\n)*Bob '",
    "exllamav2_cfg": r"scale 0.0 '.*\nscale 1.0 '.*\nscale 2.0 '",
    "exllamav2_filters": r"A number:\d{4}\nIs it so\?(Yes|No)\nGreet me:(Hello|Good)",
}
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"vocab_size": 272, "max_position_embeddings": 2048}
    folder = write_random_model(tmp_path_factory.mktemp("model"), config)
    return byte_level(folder, chat_template=CHAT, eos_token=None)


def test_each_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}.py]({name}.py)" in table for name in PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_it_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(folder)])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(PRINTS[name], printed), printed
