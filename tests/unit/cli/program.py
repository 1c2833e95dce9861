"""The `polybit` program as other tests need it: results of a call in this process, and a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import polybit


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Polybit = Callable[..., Result]


# A test run in the background inherits an ignored SIGINT, and Python leaves that as it is.
HEARS_CTRL_C = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
START = HEARS_CTRL_C + "runpy.run_module('polybit', run_name='__main__')"


@contextmanager
def program(*arguments: object, closed: str = "", **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m polybit ...` with pipes for stdin, stdout and stderr; it does not outlive the block.

    `closed` are streams that it does not get, as a shell writes that; `variables` go to its environment.
    """
    source = str(Path(polybit.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-c", START, *map(str, arguments)]
    if closed:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as started:
        try:
            yield started
        finally:
            started.kill()


def wait_for(started: subprocess.Popen[str], text: str) -> None:
    """Read the program's notes until one holds `text`."""
    assert started.stderr is not None
    for line in started.stderr:
        if text in line:
            return
    pytest.fail(f"the program ended without saying {text!r}")
