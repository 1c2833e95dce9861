"""Which backend serves a device, and what a machine without one's compiler is told."""

import sys
from types import SimpleNamespace

import pytest
import torch

from polybit.errors import KernelError
from polybit.kernels import reference
from polybit.kernels.registry import get_backend, load_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "triton", "triton", "cuda")


@pytest.fixture
def without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "cuda.core", "cuda")


def _hide(monkeypatch: pytest.MonkeyPatch, package: str, *backends: str) -> None:
    """As if `package` were not installed and the backends, which need it, not yet imported."""
    monkeypatch.setitem(sys.modules, package, None)
    for backend in backends:
        for name in [name for name in sys.modules if name.startswith(f"polybit.kernels.{backend}")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(f"polybit.kernels.{backend}", raising=False)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "numba", "cpu")


def test_a_cpu_is_served_by_its_own_backend() -> None:
    pytest.importorskip("numba")
    assert get_backend(None, CPU).NAME == "cpu"
    assert get_backend("reference", CPU) is reference


@pytest.mark.usefixtures("without_numba")
def test_without_numba_a_cpu_is_served_by_the_reference_and_the_log_says_how_to_get_it(caplog) -> None:
    assert get_backend(None, CPU) is reference
    assert "backend 'cpu' cannot be loaded" in caplog.text
    assert "-m pip install 'polybit[cpu]'" in caplog.text


def test_a_processor_without_the_instructions_is_served_by_the_reference_and_the_log_says_which_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tile_code = pytest.importorskip("polybit.kernels.cpu.tile_code")
    codegen = SimpleNamespace(magic_tuple=lambda: ("x86_64-unknown-linux-gnu", "nocona", "+sse2,-avx2"))
    monkeypatch.setattr(tile_code.cpu_target.target_context, "codegen", lambda: codegen)
    assert get_backend(None, CPU) is reference
    assert "needs AVX2 on x86, or the dot products of Armv8.2" in caplog.text
    with pytest.raises(KernelError, match="backend 'reference' runs on it"):
        get_backend("cpu", CPU)


def test_other_devices_are_served_by_the_reference() -> None:
    assert get_backend(None, torch.device("mps")) is reference


def test_a_gpu_is_served_by_cuda() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("cuda.core")
    assert get_backend(None, CUDA).NAME == "cuda"


@pytest.mark.usefixtures("without_cuda_core")
def test_without_nvrtc_a_gpu_is_served_by_triton_and_the_log_says_how_to_get_it(caplog) -> None:
    pytest.importorskip("triton")
    assert get_backend(None, CUDA).NAME == "triton"
    assert "backend 'cuda' cannot be loaded" in caplog.text
    assert "pip install 'polybit[cuda]'" in caplog.text


@pytest.mark.usefixtures("without_triton")
def test_without_triton_a_gpu_is_served_by_the_reference_and_the_log_says_so(caplog) -> None:
    assert get_backend(None, CUDA) is reference
    assert "pip install triton" in caplog.text


@pytest.mark.usefixtures("without_triton")
def test_asking_for_what_is_missing_names_the_command_that_mends_it() -> None:
    with pytest.raises(KernelError, match=r"^backend 'triton' cannot be loaded .*-m pip install triton$"):
        load_backend("triton")


@pytest.mark.usefixtures("without_triton")
def test_an_old_triton_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.4.0"))
    with pytest.raises(KernelError, match=r"^backend 'triton' cannot be loaded \(Triton 3\.4\.0 is too old"):
        load_backend("triton")


def test_a_backend_refuses_a_device_that_it_does_not_serve() -> None:
    with pytest.raises(KernelError, match=r"'triton' runs on .*, but the device is mps"):
        get_backend("triton", torch.device("mps"))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(KernelError, match="'fast' does not exist; choose one of: reference, cpu, triton"):
        get_backend("fast", CPU)
