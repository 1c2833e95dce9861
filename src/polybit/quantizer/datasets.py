"""Calibration text that the user names: a file (txt, jsonl, parquet), a folder of them, or a dataset on the Hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polybit.errors import CalibrationError
from polybit.format.hub import failures, shortened

SUFFIXES = (".parquet", ".jsonl", ".txt", ".md")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_SECONDS = 10.0  # to wait for an answer
TEXT_BLOCK = 1 << 16  # characters of a plain text file read at once


def documents(dataset: str) -> Iterator[str]:
    """The dataset's texts in order, read as far as they are asked for. CalibrationError: not found or not readable."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.exists():
        yield from _file(path)
    elif HUB_ID.fullmatch(dataset):
        yield from _hub(dataset)
    else:
        raise CalibrationError(
            f"calibration text {dataset} is not there; give a .txt, .jsonl or .parquet file, a folder of them, "
            "or the id (owner/name) of a dataset on the Hub"
        )


def _folder(path: Path) -> Iterator[str]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise CalibrationError(f"{path} holds no file of type {', '.join(SUFFIXES)}; give another folder or a file")
    for file in files:
        yield from _file(file)


def _file(path: Path) -> Iterator[str]:
    read = {".parquet": _parquet, ".jsonl": _jsonl}.get(path.suffix.lower(), _text)
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text at byte {error.start}; convert it to UTF-8") from None
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror or error}; check the file") from None


def _text(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        while block := file.read(TEXT_BLOCK):
            yield block + file.readline()


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _text_of(json.loads(line))
            except (ValueError, RecursionError):
                raise CalibrationError(
                    f"{path} line {number} is not JSON; one object or string a line is expected"
                ) from None


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow.parquet
        from pyarrow import ArrowInvalid
    except ImportError:
        raise CalibrationError(f"{path}: reading parquet needs pyarrow; pip install 'polybit[parquet]'") from None
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from map(_text_of, batch.to_pylist())
    except ArrowInvalid as error:
        raise CalibrationError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from None


def _text_of(value: Any) -> str:
    """A row's text: its `text` field where it has one, else every string in it, joined with spaces."""
    if isinstance(value, dict):
        return value["text"] if isinstance(value.get("text"), str) else _text_of(list(value.values()))
    if isinstance(value, list):
        return " ".join(filter(None, map(_text_of, value)))
    return value if isinstance(value, str) else ""


def _hub(dataset: str) -> Iterator[str]:
    """Files are fetched one by one, as far as their text is needed."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        found = HfApi().dataset_info(dataset, timeout=HUB_SECONDS)  # its tree would be asked for over and over
        names = [file.rfilename for file in found.siblings or []]
        chosen = sorted(name for name in names if name.lower().endswith(SUFFIXES[:3]))
        if not chosen:
            raise CalibrationError(f"dataset {dataset} holds no parquet, jsonl or txt file; choose another dataset")
        for name in sorted(chosen, key=lambda name: "train" not in name):
            yield from _file(Path(hf_hub_download(dataset, name, repo_type="dataset")))
    except failures() as error:
        raise CalibrationError(
            f"calibration text {dataset} is neither a file here nor a dataset to be had from the Hub "
            f"({shortened(error)}); check the name and the connection"
        ) from None
