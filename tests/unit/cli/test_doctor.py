"""`polybit doctor` on a machine that lacks something."""

import importlib.metadata

import pytest
import torch

from polybit.cli import doctor as doctor_module
from polybit.kernels import reference, registry
from polybit.kernels.protocol import Backend
from unit.cli.program import Polybit


def test_it_names_versions_device_and_every_operation(polybit_cli: Polybit) -> None:
    result = polybit_cli("doctor", "--device", "cpu")
    assert result.code == 0
    assert torch.__version__ in result.out
    assert set(doctor_module.operations()) == reference.NATIVE_OPS
    for op in reference.NATIVE_OPS:
        assert op in result.out
    assert "backend cpu (default)" in result.out


def test_a_backend_that_cannot_be_had_comes_with_the_reason(
    polybit_cli: Polybit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Backend:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(registry, "LOADERS", {**registry.LOADERS, "triton": missing})
    out = " ".join(polybit_cli("doctor", "--device", "cpu").out.split())
    assert "backend 'triton' cannot be loaded (No module named 'triton')" in out
    assert "-m pip install triton" in out


def test_what_is_missing_comes_with_the_command_that_mends_it(
    polybit_cli: Polybit, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without_some(package: str) -> str:
        if package in ("numba", "llguidance"):
            raise importlib.metadata.PackageNotFoundError
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_some)
    out = " ".join(polybit_cli("doctor", "--device", "cpu").out.split())
    assert "-m pip install 'polybit[cpu]'" in out
    assert "-m pip install llguidance" in out
    assert "-m pip install gguf" not in out


def test_a_device_that_is_not_there_is_refused(polybit_cli: Polybit) -> None:
    result = polybit_cli("doctor", "--device", "cuda:99")
    assert result.code == 2
    assert "cuda:99" in result.err
