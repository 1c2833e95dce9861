"""Triton's kernels compile for GPUs, on any machine with Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import polybit

pytest.importorskip("triton")


@pytest.mark.parametrize("architecture", [90, pytest.param(80, marks=pytest.mark.slow)])
def test_every_kernel_compiles(architecture) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = str(Path(polybit.__file__).parents[1])
    program = [sys.executable, str(Path(__file__).with_name("compile_all.py")), str(architecture)]
    done = subprocess.run(program, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = set(done.stdout.split())
    assert compiled >= {"_norm", "_activate", "_rope", "_write_kv", "_embedding", "_attention", "attend_new_tokens"}
    assert compiled >= {"_round_rows", "_round_fitted", "_descend_group", "_scale_costs", "_factor_errors"}
