import pytest
import torch

from polybit.errors import ConfigError, KernelError
from polybit.model.device import choose_device, choose_devices


@pytest.fixture(params=[0, 1, 3])
def num_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    return count


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(num_gpus: int) -> None:
    there = {0: "sees no CUDA devices", 1: "there is only cuda; use that", 3: "there is only cuda:0, cuda:1, cuda:2;"}
    with pytest.raises(KernelError, match=f"^device cuda:9 was asked for, but .*{there[num_gpus]}"):
        choose_device("cuda:9")


def test_the_last_gpu_is_accepted(num_gpus: int) -> None:
    if num_gpus:
        assert choose_device(f"cuda:{num_gpus - 1}").index == num_gpus - 1


@pytest.mark.parametrize("name", ["cpu:1", "cpu:9", "mps:1"])
def test_there_is_one_processor_and_one_apple_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(KernelError, match=f"^device {name} was asked for, but there is only {name[:3]}; use that"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_processor_itself(name: str) -> None:
    assert choose_device(name).type == "cpu"


def test_several_gpus_in_the_order_that_they_were_named(num_gpus: int) -> None:
    if num_gpus == 3:
        assert choose_devices("cuda:2, cuda:0") == (torch.device("cuda:2"), torch.device("cuda:0"))
        assert choose_devices("cuda, cuda:1") == (torch.device("cuda:0"), torch.device("cuda:1"))
        assert choose_devices("cuda") == (torch.device("cuda"),)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("cuda:0,cuda:1,cuda", "names one of them twice"),
        ("cpu,cpu", "names one of them twice"),
        ("cuda:0,cpu", "are of different kinds"),
        ("cuda:0,,cuda:1", "lacks a name"),
        ("", "lacks a name"),
    ],
)
def test_devices_that_do_not_go_together(names: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    with pytest.raises(ConfigError, match=f"^devices '{names}' {problem}"):
        choose_devices(names)


def test_one_of_several_devices_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    for names, problem in (("cuda:0,gpu", "'gpu' is not one that torch knows"), ("cuda:0,cuda:1", "cuda:1 was asked")):
        with pytest.raises(KernelError, match=f"^device {problem}"):
            choose_devices(names)
