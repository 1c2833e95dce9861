"""Work dealt out to devices: who gets what, and that results come back in order whoever found them."""

import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch

from polybit.quantizer import spread as spread_module
from polybit.quantizer.spread import Work, deal, spread

CPU = torch.device("cpu")


def test_the_dearest_go_first_and_each_to_who_has_least() -> None:
    costs = {"gate": 30, "up": 30, "down": 31, "q": 10, "k": 1}
    assert deal(costs, 2) == [["down", "q", "k"], ["gate", "up"]]


def test_equals_are_dealt_in_order_and_a_hand_may_stay_empty() -> None:
    assert deal({"a": 1, "b": 1, "c": 1}, 2) == [["a", "c"], ["b"]]
    assert deal({"a": 1}, 3) == [["a"], [], []]


def finding(value: str, then: Callable[[], object] = lambda: None) -> Work[tuple[str, str, bool]]:
    def run(device: torch.device) -> tuple[str, str, bool]:
        then()
        return value, str(device), torch.is_grad_enabled()

    return Work(len(value), run)


def test_results_come_in_order_from_two_threads_at_a_time() -> None:
    meeting = threading.Barrier(2, timeout=60)  # nobody passes alone
    works = {name: finding(name, meeting.wait) for name in ("a", "bb")}
    with torch.no_grad():
        found = list(spread([torch.device("meta"), CPU], works))
    assert found == [("a", ("a", "cpu", False)), ("bb", ("bb", "meta", False))]


def test_one_device_does_each_when_it_is_asked_for() -> None:
    ran = list[str]()
    works = {name: finding(name, partial(ran.append, name)) for name in ("a", "b")}
    found = spread([CPU], works)
    assert (next(found)[0], ran) == ("a", ["a"])
    assert (next(found)[0], ran) == ("b", ["a", "b"])


def test_a_failure_in_a_thread_is_the_caller_s() -> None:
    def fail() -> None:
        raise ValueError("not positive definite")

    with pytest.raises(ValueError, match="not positive definite"):
        list(spread([CPU, CPU], {"a": finding("a"), "b": finding("b", fail)}))


def test_no_thread_is_the_first_to_use_linear_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch would refuse one of two."""
    users, original = list[threading.Thread](), torch.linalg.cholesky_ex

    def recorded(matrix: torch.Tensor) -> object:
        users.append(threading.current_thread())
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", recorded)
    spread_module._load_linear_algebra.cache_clear()
    works = {name: finding(name, lambda: torch.linalg.cholesky_ex(torch.eye(2))) for name in ("a", "b")}
    list(spread([CPU, CPU], works))
    assert len(users) == 3
    assert users[0] is threading.main_thread()


def test_nothing_to_do_is_nothing_found() -> None:
    assert list(spread([CPU, CPU], {})) == []
