"""`polybit chat` at a real terminal: keys in, a screen out."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import polybit
from unit.cli.conftest import write_speaking_model
from unit.cli.program import START

pty = pytest.importorskip("pty", reason="only Unix has pseudo terminals")

PROMPT = "\n> "
CTRL_C, CTRL_D = "\x03", "\x04"
PATIENCE = 60.0  # seconds until something must have shown


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self._fd, theirs = pty.openpty()
        source = str(Path(polybit.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "TERM": "xterm"} | variables
        self.program = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL + START, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._seen = ""

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """What came until `pattern` did, without what steers the terminal."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self._seen)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self._seen!r}"
            try:
                self._seen += plain(os.read(self._fd, 65536).decode(errors="replace"))
            except OSError:
                pytest.fail(f"it ended with {self.program.wait()} and without {pattern!r}: {self._seen!r}")
        before, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return before

    def end(self) -> int:
        while True:
            try:
                if not os.read(self._fd, 65536):
                    break
            except OSError:
                break
        return self.program.wait(timeout=PATIENCE)

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._fd)


# The child takes the terminal as its own, so that Ctrl-C typed there is a signal for it.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "


def plain(written: str) -> str:
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", written)


@pytest.fixture(scope="module")
def patient_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context that no answer fills before somebody can stop it."""
    return write_speaking_model(tmp_path_factory.mktemp("model") / "patient", max_position_embeddings=1 << 16)


@pytest.fixture
def chatting(patient_folder: Path, tmp_path: Path) -> Iterator[Terminal]:
    options = ("-t", "0", "-n", "4", "--ignore-eos", "--device", "cpu", "--cache-tokens", str(1 << 16))
    terminal = Terminal("chat", patient_folder, "--backend", "reference", *options, XDG_DATA_HOME=str(tmp_path))
    try:
        assert "Ctrl-C stops an answer" in terminal.wait_for(PROMPT)
        yield terminal
    finally:
        terminal.close()


def test_a_short_session(chatting: Terminal, tmp_path: Path) -> None:
    chatting.type("hello\n")
    chatting.wait_for(r"4 tokens, [\d.]+ a second; prompt \d+ tokens, 0 cached")
    chatting.wait_for(PROMPT)

    chatting.type("/dance\n")
    assert "error: there is no command /dance" in chatting.wait_for(PROMPT)
    chatting.type("/set temperature 0\n")
    assert "temperature is 0.0" in chatting.wait_for(PROMPT)

    chatting.type("/edit\n")
    chatting.wait_for("> /edit hello")
    chatting.type(" you\n")
    chatting.wait_for("4 tokens")
    chatting.wait_for(PROMPT)
    chatting.type("/history\n")
    assert "user: hello you" in chatting.wait_for(PROMPT)

    chatting.type("/save here\n")
    chatting.wait_for(PROMPT)
    assert (tmp_path / "polybit" / "chats" / "here.json").is_file()
    time.sleep(0.5)  # until it waits for keys: a signal just before is only seen after the next one
    chatting.type(CTRL_C)
    chatting.wait_for("Ctrl-D or /quit leaves")
    chatting.wait_for(PROMPT)
    chatting.type(CTRL_D)
    assert chatting.end() == 0


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(chatting: Terminal) -> None:
    chatting.type("/set max_tokens none\n")
    chatting.wait_for(PROMPT)
    chatting.type("hello\n")
    chatting.wait_for("hello\n")
    time.sleep(0.3)
    chatting.program.send_signal(signal.SIGINT)
    chatting.wait_for("stopped")
    chatting.wait_for(PROMPT)
    chatting.type("/set max_tokens 4\n")
    chatting.wait_for(PROMPT)
    chatting.type("and now?\n")
    chatting.wait_for("4 tokens")
    chatting.type("/quit\n")
    assert chatting.end() == 0


def test_pasted_lines_are_one_message_and_can_be_edited(chatting: Terminal) -> None:
    chatting.type("\x1b[200~first\nsecond\x1b[201~")
    chatting.wait_for("second")
    chatting.type("\n")
    chatting.wait_for("4 tokens")
    chatting.wait_for(PROMPT)
    chatting.type("/edit\n")
    chatting.wait_for(r"> /edit first\s+second")
    chatting.type("!\n")
    chatting.wait_for("4 tokens")
    chatting.wait_for(PROMPT)
    chatting.type("/history\n")
    assert "user: first\nsecond!" in chatting.wait_for("assistant: ")


def test_three_quotes_ask_for_more_lines(chatting: Terminal) -> None:
    chatting.type('"""first\n')
    chatting.wait_for(r"\n\. ")
    chatting.type('second"""\n')
    chatting.wait_for("4 tokens")
    chatting.wait_for(PROMPT)
    chatting.type("/history\n")
    assert "user: first\nsecond\n" in chatting.wait_for("assistant: ")
