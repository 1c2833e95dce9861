"""Garbage is not collected while Numba compiles, and is again afterwards, whether that succeeded or not."""

import gc

import pytest

numba = pytest.importorskip("numba")
event = pytest.importorskip("numba.core.event")
compiling = pytest.importorskip("polybit.kernels.cpu.compiling")


class Watch(event.Listener):
    """Whether garbage was collected at the starts of compilations, after another listener's turn."""

    def __init__(self) -> None:
        self.was_on: list[bool] = []

    def on_start(self, event) -> None:
        self.was_on.append(gc.isenabled())

    def on_end(self, event) -> None:
        pass


def test_compiling_collects_no_garbage() -> None:
    inner = numba.njit(lambda x: x + 1)
    outer = numba.njit(lambda x: inner(x) * 2)
    with (
        event.install_listener("numba:compile", compiling.WithoutCollection()),
        event.install_listener("numba:compile", Watch()) as seen,
    ):
        assert outer(1) == 4
    assert len(seen.was_on) >= 2
    assert not any(seen.was_on)
    assert gc.isenabled()


def test_collection_goes_on_after_a_failure() -> None:
    broken = numba.njit(lambda x: x.nothing)
    with event.install_listener("numba:compile", compiling.WithoutCollection()), pytest.raises(numba.TypingError):
        broken(1)
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    function = numba.njit(lambda x: x - 1)
    gc.disable()
    try:
        with event.install_listener("numba:compile", compiling.WithoutCollection()):
            function(1)
        assert not gc.isenabled()
    finally:
        gc.enable()
