"""How long a fresh process takes to its first token: imports, compiling, loading, a short prompt.

The process is this module run as a program.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from polybit import version
from polybit.bench.passes import Batch
from polybit.bench.subject import Request, open_subject
from polybit.errors import KernelError
from polybit.model.options import LoadOptions

PROMPT_TOKENS = 16
READY = b"first token"
CACHES = ("POLYBIT_CACHE", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH")  # where compiled kernels are kept


@dataclass(frozen=True)
class FirstUse:
    """Seconds from the start of a process to its first token."""

    empty_cache: float  # nothing compiled yet
    full_cache: float


def measure_first_use(request: Request) -> FirstUse:
    """Raises KernelError where the process ends without a token."""
    with tempfile.TemporaryDirectory() as folder:
        return FirstUse(_seconds_to_first_token(request, folder), _seconds_to_first_token(request, folder))


def _seconds_to_first_token(request: Request, cache: str) -> float:
    command = (sys.executable, "-m", __name__, json.dumps(asdict(request)))
    begun = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=_environment(cache)) as started,
    ):
        assert started.stdout is not None
        came = started.stdout.readline().strip() == READY
        seconds = time.perf_counter() - begun
        started.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no message"])[-1]
    if not came:
        raise KernelError(f"a fresh process did not come to its first token: {last}")
    return seconds


def _environment(cache: str) -> dict[str, str]:
    """This process's, with empty caches, and this very source first on the path."""
    source = str(Path(version.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | {name: str(Path(cache) / name.lower()) for name in CACHES}


def main() -> None:
    asked = json.loads(sys.argv[1])
    request = Request(**asked | {"options": LoadOptions(**asked["options"])})
    model = open_subject(request).build(None)
    Batch(model, batch=1, length=PROMPT_TOKENS).step()
    sys.stdout.buffer.write(READY + b"\n")
    sys.stdout.buffer.flush()  # what it takes to end is not part of it


if __name__ == "__main__":
    main()
