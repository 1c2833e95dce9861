"""Options that name devices, and the budgets that they mean."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import polybit
from polybit.errors import ConfigError, KernelError
from polybit.model.machine import CONTEXT_BYTES, imagined_machine, parse_split, this_machine, without
from polybit.model.options import LoadOptions
from polybit.model.plan import GIB, Budget, Machine


def test_a_split_is_auto_or_a_size_for_each_gpu() -> None:
    assert parse_split("auto") is None
    assert parse_split("10, 22.5") == (10.0, 22.5)


@pytest.mark.parametrize("text", ["", "ten", "10;22", "-1", "0", "0,0", "nan", "10,inf", "10,,22"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"gpu_split is .*, expected auto or GiB for each GPU"):
        parse_split(text)


def test_cards_that_are_not_here_lose_what_cuda_takes() -> None:
    machine = imagined_machine("0,24")
    assert [(budget.device.index, budget.free) for budget in machine.budgets] == [(1, 24 * GIB - CONTEXT_BYTES)]
    with pytest.raises(ConfigError, match="list sizes"):
        imagined_machine("auto")


@pytest.mark.parametrize(("reserves", "left"), [([1 << 30], [3, 7, 0]), ([0, 2 << 30], [4, 6, 0])])
def test_a_reserve_leaves_so_much_of_each_device(reserves: list[int], left: list[int]) -> None:
    budgets = tuple(Budget(torch.device("cuda", i), size * GIB) for i, size in enumerate((4, 8, 1)))
    assert [budget.free // GIB for budget in without(Machine(budgets, 0), reserves).budgets] == left


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {0: 6 * GIB, 1: 20 * GIB}
    monkeypatch.delenv("POLYBIT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index or 0], 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LoadOptions(), [(0, 6), (1, 20)]),
        (LoadOptions(gpu_split="auto"), [(0, 6), (1, 20)]),
        (LoadOptions(device="cuda:1"), [(1, 20)]),
        (LoadOptions(gpu_split="10"), [(0, 6)]),  # no more than is free
        (LoadOptions(gpu_split="4,10"), [(0, 4), (1, 10)]),
        (LoadOptions(gpu_split="0,10"), [(1, 10)]),
    ],
)
def test_budgets(options: LoadOptions, expected: list[tuple[int, int]]) -> None:
    budgets = this_machine(options).budgets
    assert [(budget.device.index, budget.free / GIB) for budget in budgets] == expected


@pytest.mark.usefixtures("two_gpus")
def test_the_environment_names_a_device_as_an_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYBIT_DEVICE", "cuda:1")
    assert [budget.device.index for budget in this_machine(LoadOptions()).budgets] == [1]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (LoadOptions(gpu_split="1,2,3"), KernelError, "asks for 3 GPUs, but torch .* sees 2"),
        (LoadOptions(device="cuda:1", gpu_split="1"), ConfigError, "give one of them"),
        (LoadOptions(device="cpu", gpu_split="auto"), ConfigError, "give one of them"),
        (LoadOptions(device="cpu", offload=True), ConfigError, "offload keeps layers in RAM for a GPU"),
    ],
)
def test_contradictions_are_refused(options: LoadOptions, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        this_machine(options)


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import psutil, torch
from polybit.model.device import use_threads

psutil.cpu_count = lambda logical: 64
use_threads(None)
print(torch.get_num_threads())
"""


class TestThreads:
    @pytest.fixture(autouse=True)
    def as_before(self) -> Iterator[None]:
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)

    def test_as_many_as_asked_for(self) -> None:
        this_machine(LoadOptions(device="cpu", threads=3))
        assert torch.get_num_threads() == 3

    def test_no_more_than_physical_cores_unless_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.set_num_threads(4)
        monkeypatch.setattr("psutil.cpu_count", lambda logical: 8 if logical else 2)
        this_machine(LoadOptions(device="cpu"))
        assert torch.get_num_threads() == 2

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
    def test_no_more_than_cores_that_the_process_may_use(self) -> None:
        if len(os.sched_getaffinity(0)) < 2:
            pytest.skip("all processes have one core")
        environment = {
            name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        }
        environment["PYTHONPATH"] = str(Path(polybit.__file__).parents[1])
        found = subprocess.run(
            [sys.executable, "-c", ON_ONE_CORE], env=environment, capture_output=True, text=True, timeout=120
        )
        assert found.stdout == "1\n", found.stderr

    def test_more_than_cores_are_said_to_be_slow(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
        for threads in (2, 5):
            this_machine(LoadOptions(device="cpu", threads=threads))
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            "threads is 5, on 2 cores: they wait for each other; 2 are faster"
        ]

    def test_none_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^threads is 0, expected at least 1$"):
            this_machine(LoadOptions(device="cpu", threads=0))
