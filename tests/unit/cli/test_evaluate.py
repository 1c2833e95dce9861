"""`polybit eval`: the figures, the JSON file, and texts that cannot be used."""

import json
from pathlib import Path

import pytest

from random_model import write_random_model
from unit.cli.program import Polybit
from unit.text.folders import byte_level


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(32, 127)) * 2)
    return path


def test_without_a_reference_only_perplexity(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    written = tmp_path / "score.json"
    result = polybit_cli("eval", model_folder, "--text", text, "--length", "50", "--json", written, "--device", "cpu")
    score = json.loads(written.read_text())
    assert result.code == 0
    assert set(score) == {"perplexity", "tokens", "kl", "kl_error", "top1"}
    assert score["tokens"] == 3 * 49
    assert score["kl"] is None
    assert f"{score['perplexity']:.4f}" in result.out


def test_windows_that_were_used_before_are_left_out(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    written, rest = tmp_path / "score.json", tmp_path / "rest.txt"
    rest.write_bytes(text.read_bytes()[100:])
    found = []
    for options in (("--text", text, "--skip", "2"), ("--text", rest)):
        polybit_cli("eval", model_folder, *options, "--length", "50", "--json", written, "--device", "cpu")
        found.append(json.loads(written.read_text()))
    assert found[0] == found[1]
    assert found[0]["tokens"] == 49


def test_a_model_is_at_no_distance_from_itself(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    written = tmp_path / "score.json"
    options = ("--text", text, "--rows", "2", "--length", "50", "--json", written, "--device", "cpu")
    polybit_cli("eval", model_folder, "--reference", model_folder, *options)
    score = json.loads(written.read_text())
    assert (score["tokens"], score["top1"]) == (98, 1.0)
    assert score["kl"] == pytest.approx(0, abs=1e-12)


def test_a_quantized_cache_is_compared_with_a_full_one(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    found = {}
    for cache in ("q4", "q8"):
        written = tmp_path / f"{cache}.json"
        options = ("--text", text, "--rows", "2", "--length", "50", "--json", written, "--device", "cpu")
        polybit_cli("eval", model_folder, "--reference", model_folder, "--cache", cache, *options)
        found[cache] = json.loads(written.read_text())["kl"]
    assert 0 < found["q8"] < found["q4"] / 20


def test_a_model_that_needs_bos_gets_one_in_each_window(polybit_cli: Polybit, tmp_path: Path, text: Path) -> None:
    config = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 16, "vocab_size": 288}
    config |= {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
    folder = byte_level(write_random_model(tmp_path / "gemma", config))
    written = tmp_path / "score.json"
    polybit_cli("eval", folder, "--text", text, "--length", "50", "--json", written, "--device", "cpu")
    assert json.loads(written.read_text())["tokens"] == (190 // 49) * 49


def test_a_file_that_cannot_be_written_does_not_cost_the_figures(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    written = tmp_path / "nowhere" / "score.json"
    result = polybit_cli(
        "-q", "eval", model_folder, "--text", text, "--length", "50", "--json", written, "--device", "cpu"
    )
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{written} could not be written" in result.err
    assert "perplexity" in result.out


@pytest.mark.parametrize(
    ("contents", "message"),
    [(None, "No such file"), (b"abc", "too few"), (b"", "too few"), (b"\xff\xfe\x00", "not UTF-8 at byte 0")],
)
def test_unusable_texts_are_one_line(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, contents: bytes | None, message: str
) -> None:
    path = tmp_path / "given.txt"
    if contents is not None:
        path.write_bytes(contents)
    result = polybit_cli("-q", "eval", model_folder, "--text", path, "--device", "cpu")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
