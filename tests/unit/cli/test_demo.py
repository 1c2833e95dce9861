"""`polybit demo` with a tiny model in place of the real one: everything once, and only once."""

import re
import shutil
from pathlib import Path

import pytest

from polybit.bench.shapes import read_shape
from polybit.cli import demo as demo_module
from polybit.cli.demo_model import SHAPE
from unit.cli.program import Polybit


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> list[Path]:
    """Folders that a GGUF was exported to; each gets the tiny model."""
    made: list[Path] = []

    def export(gguf_file: Path, folder: Path) -> None:
        made.append(folder)
        shutil.copytree(model_folder, folder)

    monkeypatch.setattr(demo_module, "fetch_gguf", lambda folder: folder / "model.gguf")
    monkeypatch.setattr(demo_module.gguf, "export", export)
    return made


def test_it_ends_with_a_talking_model_and_says_where(polybit_cli: Polybit, exports: list[Path], tmp_path: Path) -> None:
    first = polybit_cli("demo", "--folder", tmp_path, "-b", "5")
    assert first.code == 0
    quantized = tmp_path / "SmolLM2-135M-Instruct-5bpw"
    assert f"chat {quantized}" in first.out
    assert "100% done" in first.err
    assert re.search(r"^self-test: passed, 0\.\d+ nats from .*, perplexity \d+\.\d beside \d+\.\d$", first.err, re.M)
    assert {path.name for path in tmp_path.iterdir()} == {quantized.name, "SmolLM2-135M-Instruct"}

    again = polybit_cli("demo", "--folder", tmp_path, "-b", "5")
    assert again.out == first.out
    assert "% done" not in again.err
    assert "self-test" not in again.err
    assert len(exports) == 1


@pytest.mark.parametrize("bits", ["1", "9", "-2"])
def test_bits_out_of_reach_are_told_before_anything_is_fetched(
    polybit_cli: Polybit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    monkeypatch.delattr(demo_module, "fetch_gguf")
    found = polybit_cli("demo", "--folder", tmp_path, "-b", bits)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_s_model_has_the_shape_that_its_reach_is_judged_by() -> None:
    """As its own config.json has it."""
    model = read_shape(SHAPE)
    assert (model.hidden_size, len(model.blocks), model.head.linear.out_features) == (576, 30, 49152)
    assert [linear.out_features for linear in model.blocks[0].attn.linears] == [576, 192, 192, 576]
    assert [linear.out_features for linear in model.blocks[0].mlp.linears] == [1536, 1536, 576]


def test_an_export_that_was_interrupted_is_done_again(exports: list[Path], tmp_path: Path) -> None:
    (tmp_path / ".tiny.partial").mkdir()
    (tmp_path / ".tiny.partial" / "config.json").write_text("{}")
    target = demo_module.export_once(tmp_path / "model.gguf", tmp_path / "tiny")
    assert (target / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
