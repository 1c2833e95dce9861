"""A tiny model that speaks, and the command line run in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polybit.cli.console import log
from polybit.cli.main import run
from random_model import write_random_model
from unit.cli.program import Polybit, Result
from unit.text.folders import byte_level

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command sets the level of polybit's log, which would outlive it here."""
    before, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(before)
    log.handlers[:] = handlers


@pytest.fixture
def polybit_cli(capsys: pytest.CaptureFixture[str]) -> Polybit:
    """Run one command line as the program does; `err` and `out` are what it printed."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer and a chat template. Read only."""
    return write_speaking_model(tmp_path_factory.mktemp("model") / "tiny")


def write_speaking_model(folder: Path, **config: Any) -> Path:
    write_random_model(folder, {"vocab_size": 288, "eos_token_id": 258, "bos_token_id": 257, **config})
    return byte_level(folder, chat_template=TEMPLATE)
