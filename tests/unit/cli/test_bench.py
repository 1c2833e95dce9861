"""`polybit bench`: figures on the screen and in a file, and wishes that cannot be granted."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from polybit import version
from polybit.bench.first_use import FirstUse
from polybit.bench.report import Vram, source_commit
from polybit.bench.subject import Request
from polybit.cli.bench import memory_line, speed
from polybit.model.options import LoadOptions
from random_model import write_random_model
from unit.bench.subjects import hurry, write_config
from unit.cli.program import Polybit

KEYS = {"decode", "prefill", "load_s", "vram_gb", "first_use_s", "read_gb_s", "matmul_tflops", "device", "commit"}
KEYS |= {"model", "bpw", "backend", "torch", "vram", "first_use_cached_s"}
SMALL = ("--batch", "1,3", "--context", "5,300", "--prefill", "7", "--device", "cpu")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def test_figures_of_a_synthetic_model(polybit_cli: Polybit, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    result = polybit_cli("bench", "--synthetic", f"{write_config(tmp_path)}@4.0", *SMALL, "--json", written)
    assert result.code == 0, result.err
    figures = json.loads(written.read_text())
    assert set(figures) == KEYS
    assert [(row["batch"], row["context"]) for row in figures["decode"]] == [(1, 5), (3, 5), (1, 300), (3, 300)]
    assert all(set(row) == {"batch", "context", "tok_per_s", "ms", "fraction"} for row in figures["decode"])
    assert [(row["batch"], row["context"]) for row in figures["prefill"]] == [(1, 7)]
    assert all(row[name] > 0 for row in figures["decode"] for name in ("tok_per_s", "ms", "fraction"))
    assert figures["model"] == "small@4"
    assert 3.5 < figures["bpw"] <= 4.0
    assert (figures["backend"], figures["vram_gb"], figures["first_use_s"]) == ("cpu", None, None)
    assert min(figures[name] for name in ("load_s", "read_gb_s", "matmul_tflops")) > 0
    assert speed(figures["decode"][0]["tok_per_s"]) in result.out
    assert "of the read bandwidth" in result.out
    assert "kinds of products are right" in result.err


def test_figures_of_a_folder(polybit_cli: Polybit, tmp_path: Path) -> None:
    folder, written = write_random_model(tmp_path / "model"), tmp_path / "figures.json"
    result = polybit_cli("bench", folder, *SMALL, "--json", written)
    assert result.code == 0, result.err
    figures = json.loads(written.read_text())
    assert (set(figures), figures["model"], figures["bpw"]) == (KEYS, "model", 16.0)


def test_a_file_that_cannot_be_written_does_not_cost_the_figures(polybit_cli: Polybit, tmp_path: Path) -> None:
    folder, written = write_random_model(tmp_path / "model"), tmp_path / "nowhere" / "figures.json"
    result = polybit_cli("-q", "bench", folder, *SMALL, "--json", written)
    assert result.code == 2
    assert f"{written} could not be written" in result.err
    assert "tokens/s" in result.out


def test_no_figure_of_a_model_that_is_wrong(polybit_cli: Polybit, tmp_path: Path) -> None:
    folder, written = write_random_model(tmp_path / "model"), tmp_path / "figures.json"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, folder / "model.safetensors")
    result = polybit_cli("-q", "bench", folder, *SMALL, "--json", written)
    assert (result.code, result.out) == (2, "")
    assert "not finite" in result.err
    assert not written.exists()


def test_first_use_is_measured_where_asked_for(
    polybit_cli: Polybit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def measured(request: Request) -> FirstUse:
        asked.append(request)
        return FirstUse(empty_cache=12.5, full_cache=2.5)

    monkeypatch.setattr("polybit.cli.bench.measure_first_use", measured)
    written, wish = tmp_path / "figures.json", f"{write_config(tmp_path)}@4.0"
    options = ("--batch", "1", "--context", "5", "--prefill", "", "--device", "cpu", "--first-use", "--json", written)
    result = polybit_cli("bench", "--synthetic", wish, *options)
    assert result.code == 0, result.err
    assert asked == [Request(None, wish, 6, 0, LoadOptions(device="cpu"))]
    figures = json.loads(written.read_text())
    assert (figures["first_use_s"], figures["first_use_cached_s"]) == (12.5, 2.5)
    assert json.loads(written.read_text())["prefill"] == []
    assert "12.5 s, then 2.5 s" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either MODEL or --synthetic"),
        (("somewhere", "--synthetic", "llama-8b@4.0"), "give either MODEL or --synthetic"),
        (("--synthetic", "llama-80b@4.0"), "did you mean llama-8"),
        (("--synthetic", "llama-1b@1.0"), "the options span 2."),
        (("--synthetic", "llama-1b@4.0", "--head-bits", "7"), "choose one of: 2, 3, 4, 5, 6, 8"),
        (("--synthetic", "llama-1b@4.0", "--batch", "1,x"), "--batch is '1,x'"),
        (("--synthetic", "llama-1b@4.0", "--context", "0"), "--context is '0'"),
        (("--synthetic", "llama-1b@4.0", "--context", "500000"), "131072"),
        (("--synthetic", "llama-1b@4.0", "--backend", "magic"), "magic"),
        (("nowhere",), "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_one_line(polybit_cli: Polybit, arguments: tuple[str, ...], words: str) -> None:
    result = polybit_cli("-q", "bench", *arguments, "--device", "cpu")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert words in result.err


def test_memory_is_told_by_its_parts() -> None:
    vram = Vram(weights=20 * 10**9, allocated=22 * 10**9, reserved=23 * 10**9, used=24 * 10**9, cache_tokens=4096)
    assert memory_line(vram).startswith("24.00 GB of the device with 4096 tokens cached")
    assert vram.to_json() == {
        "weights_gb": 20.0, "allocated_gb": 22.0, "reserved_gb": 23.0, "used_gb": 24.0, "cache_tokens": 4096
    }  # fmt: skip


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(
    polybit_cli: Polybit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polybit.model.machine.free_bytes", lambda device: 100_000_000)
    result = polybit_cli("-q", "bench", "--synthetic", "llama-1b@4.0", "--device", "cpu")
    assert result.code == 2
    assert "llama-1b@4 needs " in result.err
    assert "but 95.4 MiB of cpu can be used" in result.err


def test_the_commit_is_the_source_trees_or_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "__file__", str(tmp_path / "src" / "polybit" / "version.py"))
    assert source_commit() == version.__version__
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert source_commit() == version.__version__


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, "0.031"), (3.14159, "3.14"), (45.81, "45.8"), (12345.6, "12,346")]
)
def test_speeds_keep_three_figures(value: float, text: str) -> None:
    assert speed(value) == text
