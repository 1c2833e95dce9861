"""`polybit demo` with a tiny model in place of the real one: everything once, and only once."""

import shutil
from pathlib import Path

import pytest

from polybit.cli import demo as demo_module
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
    assert {path.name for path in tmp_path.iterdir()} == {quantized.name, "SmolLM2-135M-Instruct"}

    again = polybit_cli("demo", "--folder", tmp_path, "-b", "5")
    assert again.out == first.out
    assert "% done" not in again.err
    assert len(exports) == 1


def test_an_export_that_was_interrupted_is_done_again(exports: list[Path], tmp_path: Path) -> None:
    (tmp_path / ".tiny.partial").mkdir()
    (tmp_path / ".tiny.partial" / "config.json").write_text("{}")
    target = demo_module.export_once(tmp_path / "model.gguf", tmp_path / "tiny")
    assert (target / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
