"""NVIDIA's compute-sanitizer over the CUDA kernels: no access out of bounds, no race in shared memory.

    PYTHONPATH=src python benchmarks/card_tests.py --sanitize

What it watches is `small_products.py`, which is first run without it: that compiles the kernels, and says whether they
are right.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).parent / "small_products.py"
TOOLS = ("memcheck", "racecheck")
SUMMARY = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (.*)")
CLEAN = "clean"
# Every tensor an allocation of its own, so that what lies beyond its end is not torch's too.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
# cuda-core asks a driver for what older ones lack; that is no error of a kernel.
OPTIONS = ("--error-exitcode", "9", "--print-limit", "20", "--report-api-errors", "no")


def check(deadline: float) -> dict[str, str]:
    """For each tool CLEAN, or what it found or why it did not run."""
    program = find_sanitizer()
    if program is None:
        return dict.fromkeys(
            TOOLS, "compute-sanitizer is neither in $CUDA_HOME/bin nor on PATH; install CUDA's toolkit"
        )
    plain = watched([], deadline)
    if plain.returncode:
        return dict.fromkeys(TOOLS, f"the kernels are wrong before any tool watches: {ending(plain)}")
    return {tool: outcome(tool, watched([program, "--tool", tool, *OPTIONS], deadline)) for tool in TOOLS}


def find_sanitizer() -> str | None:
    folders = [str(Path(home) / "bin") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def watched(tool: list[str], deadline: float) -> "subprocess.CompletedProcess[str]":
    """The small products, under a tool if there is one; a run that takes too long has code 124."""
    command = [*tool, sys.executable, str(PROGRAM)]
    left = max(1.0, deadline - time.monotonic())
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
            timeout=left, env=os.environ | UNCACHED,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, f"stopped after {left:.0f} s")


def outcome(tool: str, done: "subprocess.CompletedProcess[str]") -> str:
    """CLEAN where the tool reached its summary, it counts nothing, and the products were right under it."""
    found = SUMMARY.findall(done.stdout)
    if not found or done.returncode:
        print(done.stdout[-6000:], file=sys.stderr)
        return f"code {done.returncode}: {found[-1] if found else ending(done)}"
    nothing = all(count == "0" for count in re.findall(r"\d+", found[-1]))
    return CLEAN if nothing else found[-1]


def ending(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"code {done.returncode}, no output"
