"""`polybit plan`: answers for folders, shapes, GGUF files and the Hub, and one line for what has none."""

import json
from pathlib import Path
from typing import Any

import pytest

from polybit.bench.shapes import SHAPES
from unit.cli.program import Polybit
from unit.format.gguf_cases import make


def report(polybit_cli: Polybit, *arguments: object) -> dict[str, Any]:
    found = polybit_cli("plan", *arguments, "--json")
    assert found.code == 0
    read: dict[str, Any] = json.loads(found.out)
    return read


def test_what_fits_is_within_the_card_and_the_rest_is_not_said_to(polybit_cli: Polybit) -> None:
    found = report(polybit_cli, "llama-8b", "--vram", "8", "--context", "4k,16384", "-b", "4", "-b", "8")
    (card,) = found["machine"]
    four, eight = found["rows"]
    assert list(four["total_bytes"]) == ["4096", "16384"]
    assert four["total_bytes"]["4096"] < four["total_bytes"]["16384"] <= card["free_bytes"]
    assert set(eight["total_bytes"].values()) == {None}
    assert eight["longest_context"] == 0
    assert 4 < found["most_bits"]["16384"] < found["most_bits"]["4096"] < 8


def test_the_answer_is_the_same_for_a_shape_a_file_and_a_folder(polybit_cli: Polybit, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["llama-1b"]))
    wanted = report(polybit_cli, "llama-1b", "--vram", "3")
    assert report(polybit_cli, tmp_path, "--vram", "3") == wanted
    assert report(polybit_cli, tmp_path / "config.json", "--vram", "3") == wanted


def test_of_a_model_on_the_hub_only_the_description_is_fetched(
    polybit_cli: Polybit, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("owner/name", None)
        assert "*.json" in allow_patterns
        assert "*.safetensors" not in allow_patterns
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert report(polybit_cli, "owner/name", "--vram", "8") == report(polybit_cli, model_folder, "--vram", "8")


def test_a_gguf_file_is_not_unpacked(polybit_cli: Polybit, tmp_path: Path) -> None:
    made = make("llama")
    made.write(tmp_path / "model.gguf")
    found = report(polybit_cli, tmp_path / "model.gguf", "--vram", "8")
    assert found["rows"][0]["longest_context"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_without_a_card_it_is_this_machine(polybit_cli: Polybit, model_folder: Path) -> None:
    found = report(polybit_cli, model_folder)
    assert found["machine"][0]["free_bytes"] > 0


def test_tables_for_people(polybit_cli: Polybit) -> None:
    shown = polybit_cli("plan", "llama-70b", "--vram", "24", "--context", "4k,8k").out
    for words in ("4,096 tokens", "longest context", "8,192 tokens  up to 2.", "—"):
        assert words in shown
    assert "8,192 tokens  does not fit whole at any bits" in polybit_cli("plan", "llama-70b", "--vram", "12").out


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        (("llama-9b",), "no folder here, no id on the Hub and no shape; did you mean llama-8b?"),
        (("missing.json",), "there is no missing.json"),
        (("missing.gguf",), "missing.gguf"),
        (("llama-8b", "--vram", "many"), "gpu_split is 'many', expected"),
        (("llama-8b", "--context", "4k,"), "--context is '4k,', expected tokens"),
        (("llama-8b", "--context", "0"), "--context is '0', expected tokens"),
        (("llama-8b", "--context", "1024k"), "1,048,576 tokens, but the model reaches 131,072"),
        (("llama-8b", "-b", "1.5"), "--bits is 1.5, but a conversion of this model reaches 2."),
        (("llama-8b", "--head-bits", "7"), "head_bits is 7, expected one of"),
        (("llama-8b", "--cache", "q5"), "cache is 'q5', expected"),
    ],
)
def test_what_has_no_answer_is_one_line(polybit_cli: Polybit, arguments: tuple[str, ...], finding: str) -> None:
    found = polybit_cli("-q", "plan", "--vram", "24", *arguments)
    assert (found.code, found.out) == (2, "")
    assert finding in found.err
    assert found.err.count("\n") == 1
