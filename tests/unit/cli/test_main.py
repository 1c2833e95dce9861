"""What the program does with errors, interrupts and wrong command lines."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import polybit
from polybit.cli import main
from polybit.errors import FormatError
from unit.cli.program import Polybit, program, wait_for


def test_without_a_command_it_shows_its_commands(polybit_cli: Polybit) -> None:
    result = polybit_cli()
    assert result.code == 0
    for name in ("chat", "convert", "demo", "doctor", "eval", "generate", "inspect"):
        assert re.search(rf"^\W*{name}\b", result.out, re.MULTILINE), name


def test_version(polybit_cli: Polybit) -> None:
    assert polybit_cli("--version").out == "0.1.0\n"


@pytest.mark.parametrize("command", ["chat", "convert", "demo", "doctor", "eval", "generate", "inspect"])
def test_every_command_has_help(polybit_cli: Polybit, command: str) -> None:
    result = polybit_cli(command, "--help")
    assert result.code == 0
    assert "Usage: polybit " + command in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "--nope"),
        (["dance"], "dance"),
        (["generate", "model", "-p", "x", "--nope"], "--nope"),
        (["generate"], "MODEL"),
        (["generate", "model"], "--prompt"),
        (["generate", "model", "-p", "x", "-t", "hot"], "--temperature"),
        (["generate", "model", "-p", "x", "-t", "-1"], "temperature is -1"),
        (["eval", "model"], "--text"),
        (["eval", "model", "--text", "x", "--rows", "0"], "--rows"),
        (["inspect", "model", "--context", "0"], "--context"),
    ],
)
def test_a_wrong_command_line_is_one_line(polybit_cli: Polybit, arguments: list[str], message: str) -> None:
    result = polybit_cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FormatError("a tensor\nis wrong"), "error: a tensor is wrong\n"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "error: x.txt: No such file or directory\n"),
        (MemoryError(), "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory (CUDA out of memory)"),
    ],
)
def test_errors_become_one_line(
    polybit_cli: Polybit, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", broken)
    result = polybit_cli("inspect", "model")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(line)
    assert result.err.count("\n") == 1


def test_a_bug_is_not_disguised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main, "app", broken)
    with pytest.raises(ZeroDivisionError):
        main.run([])


def test_the_program_prints_one_line_and_exits_with_two(tmp_path: Path) -> None:
    with program("inspect", tmp_path) as started:
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (2, "")
    assert err == f"error: {tmp_path} holds no config.json; give the folder of a Hugging Face or EXL2 model\n"


def test_ctrl_c_leaves_with_130_and_no_traceback(model_folder: Path) -> None:
    with program("chat", model_folder, "--device", "cpu") as started:
        assert started.stdin is not None
        started.stdin.write("/help\n")
        started.stdin.flush()
        wait_for(started, "/help")
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("interrupted\n")


AT_TORCH = """
import runpy, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
runpy.{run}
"""


@pytest.mark.parametrize(
    "run", ['run_module("polybit", run_name="__main__")', 'run_path("convert.py", run_name="__main__")']
)
def test_ctrl_c_does_so_while_torch_is_imported(run: str) -> None:
    root = Path(__file__).parents[3]
    started = subprocess.run(
        [sys.executable, "-c", AT_TORCH.replace("{run}", run), "--version"],
        env=os.environ | {"PYTHONPATH": str(Path(polybit.__file__).parents[1])},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (started.returncode, started.stdout, started.stderr) == (130, "", "")


def test_a_reader_that_leaves_early_is_no_error(model_folder: Path) -> None:
    with program("-q", "generate", model_folder, "-p", "x", "--ignore-eos", "--device", "cpu") as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.read(1)
        started.stdout.close()
        assert started.stderr.read() == ""


@pytest.mark.skipif(os.name == "nt", reason="streams are closed by a POSIX shell")
@pytest.mark.parametrize(
    ("arguments", "closed", "line"),
    [
        (["--version"], ">&-", "error: stdout is closed, and results go there; send them to a file, or to /dev/null\n"),
        (["-q", "generate", ".", "-p", "-", "--device", "cpu"], "<&-", "error: the prompt is empty"),
    ],
)
def test_a_closed_stream_is_one_line(model_folder: Path, arguments: list[str], closed: str, line: str) -> None:
    with program(*(str(model_folder) if each == "." else each for each in arguments), closed=closed) as started:
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_terminal_that_knows_only_ascii_shows_what_it_can(model_folder: Path) -> None:
    with program("inspect", model_folder, "--device", "cpu", PYTHONIOENCODING="ascii") as started:
        out, err = started.communicate(timeout=60)
    assert started.returncode == 0, err
    assert "????" in out


def test_input_that_is_no_text_is_one_line(model_folder: Path) -> None:
    with program("-q", "generate", model_folder, "-p", "-", "--device", "cpu") as started:
        assert started.stdin is not None
        started.stdin.buffer.write(b"\xff\xfe")
        _, err = started.communicate(timeout=60)
    assert started.returncode == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
