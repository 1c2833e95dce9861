"""Several models by one conversion: each as if it were made alone, by one measurement, whatever interrupts it."""

import json
import re
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from polybit.errors import FormatError, JobError
from polybit.format import files
from polybit.quantizer import convert as convert_module
from polybit.quantizer import job, passes
from polybit.quantizer.convert import ConvertOptions, ConvertProgress, ConvertResult, convert
from polybit.quantizer.folders import WORK_FOLDER

BITS = (3.0, 4.5)
WRITES_MORE = 5  # before a disk is full again


@pytest.fixture(scope="module")
def options(text: Path) -> ConvertOptions:
    return ConvertOptions(calibration=str(text), rows=3, length=64, measure_rows=2, measure_length=32, device="cpu")


@pytest.fixture(scope="module")
def alone(tiny: Path, options: ConvertOptions, tmp_path_factory: pytest.TempPathFactory) -> list[ConvertResult]:
    folder = tmp_path_factory.mktemp("alone")
    return [convert(tiny, folder / f"{bits}", options, bits=bits) for bits in BITS]


def contents(folder: Path) -> dict[str, bytes]:
    """All but the report, which tells how long things took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stem != "report"}


def assert_as_if_alone(results: list[ConvertResult], alone: list[ConvertResult]) -> None:
    for found, wanted in zip(results, alone, strict=True):
        assert contents(found.folder) == contents(wanted.folder)
        assert (found.bits, found.errors) == (wanted.bits, wanted.errors)


@dataclass(frozen=True)
class Together:
    results: list[ConvertResult]
    told: list[ConvertProgress]
    went_back: list[int]  # layers, in the order in which they were judged


@pytest.fixture(scope="module")
def together(tiny: Path, options: ConvertOptions, tmp_path_factory: pytest.TempPathFactory) -> Together:
    told, layers = list[ConvertProgress](), list[int]()

    def counting(bench: passes.Workbench, layer: int, *others: Any) -> Any:
        layers.append(layer)
        return passes.go_back(bench, layer, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "go_back", counting)
        results = convert(tiny, tmp_path_factory.mktemp("all") / "tiny", options, told.append, bits=BITS)
    return Together(results, told, layers)


def test_each_is_as_if_made_alone(together: Together, alone: list[ConvertResult]) -> None:
    assert_as_if_alone(together.results, alone)


def test_all_are_measured_once(together: Together) -> None:
    assert together.went_back == [1, 0]


def test_each_has_a_folder_of_its_own_and_nothing_else_is_left(together: Together) -> None:
    folders = [found.folder for found in together.results]
    assert [folder.name for folder in folders] == ["tiny-3.0bpw", "tiny-4.5bpw"]
    assert sorted(folders[0].parent.iterdir()) == folders


def test_each_says_its_own_bits(together: Together) -> None:
    configs = [json.loads((found.folder / "config.json").read_text()) for found in together.results]
    assert [config["quantization_config"]["bits"] for config in configs] == list(BITS)


def test_progress_grows_to_one_and_says_which_model(together: Together) -> None:
    fractions = [event.fraction for event in together.told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    shared = [event for event in together.told if event.stage in ("forward", "loss", "backward")]
    assert {event.bits for event in shared} == {None}
    assert [event.bits for event in together.told if event.stage == "write"] == list(BITS)


def test_a_disk_that_fills_again_and_again_loses_nothing(
    tiny: Path, options: ConvertOptions, alone: list[ConvertResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full at the first write, then some writes later, ...: each run gets further, because every layer is saved."""
    monkeypatch.setattr(job, "CHECKPOINT_SECONDS", 0.0)
    left, sync, failures, said = 0, files.sync, 0, list[str]()

    def filling_sync(path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "sync", filling_sync)
    results = list[ConvertResult]()
    while not results:
        left = WRITES_MORE * failures
        try:
            results = convert(tiny, tmp_path / "out", options, bits=BITS)
        except FormatError as error:
            said.append(str(error))
            failures += 1
    assert failures > 5
    assert all(re.search("the disk is full; free some space and run again$", line) for line in said)
    assert_as_if_alone(results, alone)


def test_other_bits_are_another_job(tiny: Path, options: ConvertOptions, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", options, bits=BITS, measure_only=True)
    with pytest.raises(JobError, match=r"belongs to a job with bits \[3\.0, 4\.5\], not \[3\.0, 5\.0\]"):
        convert(tiny, tmp_path / "out", options, bits=(3.0, 5.0))
    assert (tmp_path / "out" / WORK_FOLDER).exists()


@pytest.mark.parametrize(
    ("bits", "finding"),
    [
        ((), "empty list"),
        ((4.0, 3.0, 4.0), "asks for 4 twice"),
        ((4.0, 0.0), "bits is 0.0, expected"),
        ((4.0, 1.5), "1.5 bits per weight cannot be reached"),
    ],
)
def test_one_wrong_number_refuses_all(
    bits: tuple[float, ...], finding: str, tiny: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=finding):
        convert(tiny, tmp_path / "out", options, bits=bits)
    assert not (tmp_path / "out").exists()
