"""Pinned memory, with CUDA's runtime made up: it is registered once, and let go when nobody can reach it any more."""

import gc
from types import SimpleNamespace

import pytest
import torch

from polybit.errors import OutOfMemory
from polybit.model.pinned import pinned_bytes


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []

    def register(start: int, size: int, flags: int) -> int:
        made.append(("register", start, size))
        return 0 if size < 1 << 20 else 2

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda start: made.append(("unregister", start))
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return made


def test_memory_stays_pinned_while_a_view_of_it_lives(calls: list[tuple[object, ...]]) -> None:
    buffer = pinned_bytes(1001)
    start, view = buffer.data_ptr(), buffer[10:20]
    assert calls == [("register", start, 1001)]
    del buffer
    gc.collect()
    view.fill_(7)
    assert len(calls) == 1
    del view
    gc.collect()
    assert calls[1:] == [("unregister", start)]


def test_what_cannot_be_pinned_is_said_with_its_size(calls: list[tuple[object, ...]]) -> None:
    with pytest.raises(OutOfMemory, match=r"512 MiB of RAM cannot be pinned for the GPU \(CUDA error 2\)"):
        pinned_bytes(1 << 29)
    gc.collect()
    assert [name for name, *_ in calls] == ["register"]  # and nothing is let go that was never held


def test_without_a_gpu_it_is_plain_memory() -> None:
    buffer = pinned_bytes(1001)
    assert (len(buffer), buffer.dtype) == (1001, torch.uint8)
    assert not buffer.any()
