import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from polybit.errors import CalibrationError
from polybit.quantizer import corpus, datasets
from polybit.quantizer.calibration import Calibration, Shape, read_calibration


def encode(text: str) -> list[int]:
    return list(text.encode())


def text_of(found: Calibration) -> str:
    return bytes(found.tokens.flatten().tolist()).decode()


# ---- what the user names


def test_text_is_cut_into_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghijklmnop")
    found = read_calibration(str(tmp_path / "a.txt"), Shape(rows=3, length=4, vocab_size=256), encode)
    assert bytes(found.tokens[1].tolist()) == b"efgh"
    assert found.tokens.shape == (3, 4)
    digest = hashlib.sha256(b"".join(bytes([c, 0, 0, 0, 0, 0, 0, 0]) for c in b"abcdefghijkl")).hexdigest()
    assert found.record["sha256"] == digest
    assert (found.record["dataset"], found.record["rows"], found.record["length"]) == ("a.txt", 3, 4)


def test_each_row_begins_with_bos_where_the_model_wants_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdef")
    found = read_calibration(str(tmp_path / "a.txt"), Shape(2, 4, 256, bos=1), encode)
    assert found.tokens.tolist() == [[1, *b"abc"], [1, *b"def"]]


def test_ids_beyond_the_vocabulary_become_zero(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a~b~")
    assert read_calibration(str(tmp_path / "a.txt"), Shape(1, 4, 100), encode).tokens.tolist() == [[97, 0, 98, 0]]


def test_jsonl_takes_the_text_field_or_every_string(tmp_path: Path) -> None:
    rows = [{"id": "x", "text": "one"}, "two", {"q": "three", "n": 3, "a": ["four", {"b": "five"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert list(datasets.documents(str(tmp_path / "a.jsonl"))) == ["one", "two", "three four five"]


def test_parquet_joins_the_columns_of_a_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": ["one", "two"], "n": [1, 2], "b": ["1st", None]}), tmp_path / "a.parquet")
    assert list(datasets.documents(str(tmp_path / "a.parquet"))) == ["one 1st", "two"]


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.png").write_bytes(b"\xff")
    assert list(datasets.documents(str(tmp_path))) == ["first", "second"]


def test_a_long_file_is_read_only_as_far_as_needed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word\n" * 1_000_000)
    encoded = 0

    def counting(text: str) -> list[int]:
        nonlocal encoded
        encoded += len(text)
        return encode(text)

    read_calibration(str(tmp_path / "a.txt"), Shape(2, 8, 256), counting)
    assert encoded < 200_000


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(CalibrationError, match=r"pip install 'polybit\[parquet\]'$"):
        list(datasets.documents(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("name", "data", "finding"),
    [
        ("a.jsonl", b'{"text": "x"}\n{oops\n', "line 2 is not JSON"),
        ("a.txt", b"abc\xff", "is not UTF-8"),
        ("a.parquet", b"not parquet at all", "is not a readable parquet file"),
    ],
)
def test_damaged_files_are_refused_in_one_line(name: str, data: bytes, finding: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CalibrationError, match=rf"^[^\n]*{name}[^\n]*{finding}[^\n]*$"):
        list(datasets.documents(str(tmp_path / name)))


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is not there; give"):
        list(datasets.documents(str(tmp_path / "missing.txt")))
    with pytest.raises(CalibrationError, match="holds no file of type"):
        list(datasets.documents(str(tmp_path)))


def test_a_hub_dataset_is_fetched_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train comes first, and a file that is not needed is not fetched."""
    for name in ("test.jsonl", "train-0.jsonl", "train-1.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": f"text of {name} "}))
    fetched = []

    def download(dataset: str, name: str, repo_type: str) -> str:
        fetched.append(name)
        return str(tmp_path / name)

    names = ["README.md", "test.jsonl", "train-1.jsonl", "train-0.jsonl"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = read_calibration("someone/words", Shape(1, 30, 256), encode)
    assert text_of(found) == "text of train-0.jsonl text of "
    assert fetched == ["train-0.jsonl", "train-1.jsonl"]
    assert found.record["dataset"] == "words"


def test_an_offline_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CalibrationError, match=r"^calibration text someone/words is neither [^\n]*$"):
        list(datasets.documents("someone/words"))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(HfHubHTTPError.__bases__[0]):
        """An error of the HTTP library that the Hub's client is built on."""

    patience = list[float]()

    def refuse(*_: Any, timeout: float) -> None:
        patience.append(timeout)
        raise Unreachable("connection\nrefused")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(
        CalibrationError, match=r"^calibration text someone/words is neither [^\n]*\(connection refused\)"
    ):
        list(datasets.documents("someone/words"))
    assert len(patience) == 1
    assert 0 < patience[0] <= 10


# ---- the default


def test_the_default_is_the_same_at_every_run_and_says_what_it_is() -> None:
    shape = Shape(rows=16, length=64, vocab_size=256)
    first, second = (read_calibration(None, shape, encode) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert first.record == second.record
    assert first.tokens.shape == (16, 64)
    assert first.record["dataset"] == "(default)"
    composition = first.record["tokens_by_source"]
    assert sum(composition.values()) == 16 * 64
    assert composition["random tokens"] == 64
    assert composition["prose"] == math.ceil((16 - 1) * 64 * 30 / 45)
    assert composition["language reference"] + composition["package descriptions"] > composition["source code"]


def test_prose_is_used_once_and_other_text_makes_up_for_it() -> None:
    found = read_calibration(None, Shape(rows=64, length=512, vocab_size=256), encode).record["tokens_by_source"]
    text = "\n".join(corpus.prose())
    assert 0 < found["prose"] <= len(text.encode())
    assert found["language reference"] > found["prose"]


def test_what_one_source_lacks_the_next_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without pydoc_data still calibrates."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    found = read_calibration(None, Shape(4, 64, 256), encode)
    assert found.record["tokens_by_source"]["language reference"] == 0
    assert found.tokens.shape == (4, 64)


def test_too_little_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def little() -> Iterator[str]:
        yield "x" * 700

    monkeypatch.setattr(corpus, "SOURCES", {"little": (1, little)})
    with pytest.raises(CalibrationError, match="has 700 tokens, but the rows asked for need 800"):
        read_calibration(None, Shape(8, 100, 256), encode)


def test_half_of_the_default_is_what_the_model_writes() -> None:
    asked = []

    def write(starts: Tensor, length: int) -> Tensor:
        asked.append((starts, length))
        return torch.full((len(starts), length), 9)

    found = read_calibration(None, Shape(rows=16, length=64, vocab_size=256), encode, write)
    ((starts, length),) = asked
    assert len(starts) * length >= 7 * 64
    assert (starts >= 0).all()
    assert (starts < 256).all()
    assert len(starts.unique()) > 1
    assert (found.tokens[8:15] == 9).all()
    assert (found.tokens[:8] != 9).any(1).all()
    assert found.record["tokens_by_source"]["the model's own"] == 7 * 64
    assert sum(found.record["tokens_by_source"].values()) == 16 * 64


def test_a_sample_spreads_over_all_rows() -> None:
    found = Calibration(torch.arange(80).view(8, 10), {})
    assert found.sample(4, 3).tolist() == [[0, 1, 2], [20, 21, 22], [40, 41, 42], [60, 61, 62]]
