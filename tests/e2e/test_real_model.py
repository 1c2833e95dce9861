"""A real model the whole way: fetched, converted, asked, measured. Minutes and a download of 93 MB: pytest -m slow."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from e2e.test_dropin import SCRIPT, run
from polybit.model.evaluate import cut_windows, evaluate
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.text import Tokenizer

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Demo:
    folder: Path
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "polybit", "demo", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Demo(folder, done.returncode, done.stdout, done.stderr)


def test_the_demo_answers(demo: Demo) -> None:
    assert demo.code == 0, demo.err
    assert "Paris" in demo.out


def test_a_script_for_the_original_runs_as_it_is(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "quants").mkdir()
    (tmp_path / "quants" / "llama3-70b-exl2").symlink_to(demo.folder / "SmolLM2-135M-Instruct-4bpw")
    done = run(SCRIPT, tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Write a Tailwind grid system")
    assert len(done.stdout.split()) > 50  # another text at each run: the script gives no seed


def test_four_bits_predict_nearly_what_sixteen_do(demo: Demo) -> None:
    original, quantized = (demo.folder / f"SmolLM2-135M-Instruct{suffix}" for suffix in ("", "-4bpw"))
    ids = Tokenizer.open(original).encode(topics["assignment"] + topics["class"] + topics["yield"])
    windows = cut_windows(torch.tensor(ids), length=256, rows=8)
    models = [load(open_model(folder, LoadOptions(device="cpu"))) for folder in (quantized, original)]
    score = evaluate(models[0], windows, models[1])
    assert score.kl is not None
    assert 0.001 < score.kl < 0.3
