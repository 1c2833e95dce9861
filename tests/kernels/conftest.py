"""Every kernel test runs for every backend here: a new backend inherits them all by its name in the registry.

On a machine without a GPU, Triton's kernels run in its interpreter; with one, they run there (pytest -m gpu).
"""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from kernels.interpreter import mended
from polybit.kernels.protocol import Backend
from polybit.kernels.registry import BACKENDS, load_backend

PACKAGES = {"cpu": "numba", "triton": "triton", "cuda": "cuda.core"}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, device: torch.device) -> Iterator[Backend]:
    if request.param != "reference":
        pytest.importorskip(PACKAGES[request.param])
    found = load_backend(request.param)
    if device.type not in found.DEVICES:
        pytest.skip(f"{found.NAME} is compiled here, for the GPU alone")
    with mended() if request.param == "triton" and device.type == "cpu" else nullcontext():
        yield found


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


@pytest.fixture(autouse=True)
def _ieee_arithmetic() -> Iterator[None]:
    """The interpreter computes in NumPy, which would warn of infinities in lanes that a mask throws away."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN: an element that a kernel forgets, or reads unwritten, shows."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))


def _poisoned(make):
    def poisoned(*args, **kwargs):
        made = make(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    return poisoned
