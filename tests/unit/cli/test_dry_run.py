"""`polybit convert --dry-run`: figures, nothing written, and refused what a conversion refuses at its start."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from packed_model import pack_model
from polybit.cli import dry_run
from unit.cli.conftest import write_speaking_model
from unit.cli.program import Polybit
from unit.format.gguf_cases import make

CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of so many TFLOP/s, without trying it."""
    monkeypatch.setattr(dry_run, "matmul_tflops", lambda *_: 0.1)


def test_it_says_what_would_be_made_and_taken_and_writes_nothing(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path
) -> None:
    before = sorted(model_folder.iterdir())
    found = polybit_cli("convert", model_folder, tmp_path / "out", "--dry-run", "-b", "3", "-b", "4.5", *CPU)
    assert found.code == 0
    said = "".join(found.out.split())  # lines are folded anywhere
    for words in (f"{tmp_path}/out/out-3.0bpw", "out-4.5bpw", "whileitworks", "memory", "time", "quantize"):
        assert words in said
    assert "fromthe100billionoperationsasecond" in said
    assert list(tmp_path.iterdir()) == []
    assert sorted(model_folder.iterdir()) == before


def test_a_disk_that_is_too_small_is_said_after_the_figures(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 5, 5))
    found = polybit_cli("-q", "convert", model_folder, tmp_path / "out", "--dry-run", *CPU)
    assert found.code == 2
    assert "while it works" in found.out
    assert "5 bytes free, but converting needs" in found.err


def test_too_little_memory_is_said(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "free_ram", lambda: 1)
    found = polybit_cli("convert", model_folder, tmp_path / "out", "--dry-run", *CPU)
    assert found.code == 0
    assert "of 1 bytes free; that is not enough" in found.out


def test_every_gpu_is_told_what_it_takes(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(dry_run, "free_bytes", lambda device: 1 if device.index == 1 else 10**9)
    found = polybit_cli("convert", model_folder, tmp_path / "out", "--dry-run", "--devices", "cuda:0,cuda:1")
    lines = {line[:12].strip(): line for line in found.out.splitlines()}
    assert "of 1.00 GB free" in lines["GPU memory"]
    assert "of 1 bytes free; that is not enough" in lines["of cuda:1"]
    assert "as if it were alone" in found.out


def test_a_device_and_devices_are_one_too_many(polybit_cli: Polybit, model_folder: Path, tmp_path: Path) -> None:
    found = polybit_cli("convert", model_folder, tmp_path / "out", "--devices", "cuda:0,cuda:1", *CPU)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "device cpu and devices cuda:0,cuda:1 are both given; give one of the two" in found.err


def test_a_gguf_file_is_not_unpacked(polybit_cli: Polybit, tmp_path: Path) -> None:
    make("llama").write(tmp_path / "model.gguf")
    found = polybit_cli("convert", tmp_path / "model.gguf", tmp_path / "out", "--dry-run", *CPU)
    assert found.code == 0
    assert "unpacked beside OUT while it works" in found.out
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_of_a_model_on_the_hub_only_the_description_is_fetched(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert "*.safetensors" not in allow_patterns
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert polybit_cli("convert", "owner/name", tmp_path / "out", "--dry-run", *CPU).code == 0


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        (("-b", "1.0"), "1 bits per weight cannot be reached"),
        (("-b", "4", "-b", "4"), "bits asks for 4 twice"),
        (("--head-bits", "7"), "head_bits is 7"),
        (("--measurement", "missing.json"), "missing.json cannot be read"),
    ],
)
def test_what_a_conversion_refuses_is_refused(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, options: tuple[str, ...], finding: str
) -> None:
    found = polybit_cli("-q", "convert", model_folder, tmp_path / "out", "--dry-run", *options, *CPU)
    assert (found.code, found.out) == (2, "")
    assert finding in found.err


def test_a_quantized_source_is_refused(polybit_cli: Polybit, tmp_path: Path) -> None:
    packed = pack_model(write_speaking_model(tmp_path / "packed"))
    found = polybit_cli("-q", "convert", packed, tmp_path / "out", "--dry-run", *CPU)
    assert found.code == 2
    assert "quantized already (exl2)" in found.err


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (119, "119 s"), (150, "2.5 min"), (7000, "116.7 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert dry_run.duration(seconds) == words
