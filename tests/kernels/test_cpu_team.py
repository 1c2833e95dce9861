"""Threads share work: every piece is done once, by whoever is there, and nobody waits for those who are not."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

numba = pytest.importorskip("numba")
atomic = pytest.importorskip("polybit.kernels.cpu.atomic")
team_of_cpu = pytest.importorskip("polybit.kernels.cpu.team")
inner = pytest.importorskip("polybit.kernels.cpu.inner").inner

take_next, together = atomic.take_next, team_of_cpu.together
ROUNDS = 2000  # of each piece, some microseconds


@inner()
def _work(worker, taken, found) -> None:  # type: ignore[no-untyped-def]
    """Piece i is counted in column i of the worker's row."""
    i = take_next(taken, 0)
    while i < found.shape[1]:
        for k in range(ROUNDS):
            found[worker, i] += np.sqrt(k) > -1
        i = take_next(taken, 0)


@numba.njit(cache=True, nogil=True)
def _share(found, board, limit) -> None:  # type: ignore[no-untyped-def]
    together(board, limit, _work, (np.zeros(1, np.int64), found))


@pytest.fixture
def threads() -> Iterator[int]:
    before, wanted = torch.get_num_threads(), 3
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


def _shared(threads: int, pieces: int = 500) -> np.ndarray:
    """[threads, pieces]: how often each thread did each piece."""
    found = np.zeros((threads, pieces), np.int64)
    with team_of_cpu.team.turn:
        board, count = team_of_cpu.team.call()
        _share(found, board, min(count, threads))
    assert (found.sum(0) == ROUNDS).all()
    return found // ROUNDS


def test_every_piece_is_done_once(threads) -> None:
    for pieces in (0, 1, 2, 7, 500):
        assert _shared(threads, pieces).sum() == pieces


def test_others_join_in(threads) -> None:
    until = time.monotonic() + 60
    while not (_shared(threads).sum(1) > 0).all():
        assert time.monotonic() < until


def test_they_are_there_again_after_a_pause(threads) -> None:
    test_others_join_in(threads)
    until = time.monotonic() + 10
    while team_of_cpu.team._awake.is_set():  # where cores are busy they take their time to fall asleep
        assert time.monotonic() < until
        time.sleep(0.01)
    test_others_join_in(threads)


def test_no_more_than_asked_for(threads) -> None:
    test_others_join_in(threads)
    for _ in range(50):
        assert _shared(1).shape[0] == 1


def test_who_is_not_asked_for_any_more_leaves(threads) -> None:
    team, others = team_of_cpu.Team(), set(threading.enumerate())
    for wanted in (threads, 2, threads):
        torch.set_num_threads(wanted)
        with team.turn:
            team.call()
        assert len(set(threading.enumerate()) - others) == wanted - 1
    team.end()
    assert not set(threading.enumerate()) - others


def test_callers_take_turns(threads) -> None:
    with ThreadPoolExecutor(3) as callers:
        list(callers.map(lambda _: _shared(threads, 20), range(150)))


def test_nobody_waits_for_who_is_not_there(threads) -> None:
    """A team whose helpers have gone home does the work alone."""
    left = team_of_cpu.Team()
    left.end()
    found = np.zeros((threads, 20), np.int64)
    with left.turn:
        _share(found, *left.call())
    assert (found[0] == ROUNDS).all()
    assert not found[1:].any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_a_team_of_its_own(threads) -> None:
    """Also where another thread is in the middle of a kernel."""
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            _shared(threads, 50)

    with ThreadPoolExecutor(1) as other:
        other.submit(work)
        try:
            codes = [_code_of(_fork(lambda: test_others_join_in(threads))) for _ in range(20)]
        finally:
            stopped.set()
    assert codes == [0] * len(codes)


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _code_of(child: int) -> int:
    until = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < until
        time.sleep(0.001)
    return ended[1]


def test_a_system_that_gives_no_more_threads(threads, monkeypatch, caplog) -> None:
    """is said once, and those that are there do the work."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    alone = team_of_cpu.Team()
    for _ in range(2):
        found = np.zeros((threads, 20), np.int64)
        with alone.turn:
            _share(found, *alone.call())
        assert (found.sum(0) == ROUNDS).all()
    (record,) = caplog.records
    assert record.getMessage().startswith("1 threads compute, not more: can't start new thread; see")
    alone.end()
