"""The tokens that a conversion calibrates on: rows of equal length out of text, and a record of their origin."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polybit.errors import CalibrationError
from polybit.quantizer import corpus, datasets

Encode = Callable[[str], list[int]]
Write = Callable[[Tensor, int], Tensor]  # first tokens [S], length -> passages [S, length] of the model's own writing

DEFAULT_NAME = "(default)"
RANDOM_SHARE = 16  # one row in so many of the default text is uniformly random tokens
OWN_SHARE = 2  # one in so many of the others is the model's own writing
PASSAGE = 128  # tokens of it at a time: many short passages vary more than a few long ones
# Tokens taken of one document of the default text: few, for variety beats coherence, unless more are needed.
DOCUMENT_TOKENS = (256, 2048, None)
ENCODE_BLOCK = 1 << 16  # characters encoded at once: a long text is tokenized only as far as it is needed


@dataclass(frozen=True)
class Shape:
    """How much text is wanted, and what rows must look like."""

    rows: int
    length: int
    vocab_size: int  # ids beyond it become 0
    bos: int | None = None  # first token of each row


@dataclass(frozen=True)
class Calibration:
    tokens: Tensor  # [rows, length] int64
    record: dict[str, Any]  # for config.json: dataset, tokens by source, SHA-256 of the tokens

    def sample(self, rows: int, length: int) -> Tensor:
        """[rows, length]: rows spread evenly over all, so that every kind of text is among them."""
        picked = torch.arange(rows) * len(self.tokens) // rows
        return self.tokens[picked, :length]


def read_calibration(dataset: str | None, shape: Shape, encode: Encode, write: Write | None = None) -> Calibration:
    """Rows from `dataset` (see datasets.documents); where it is None, of the texts in docs/calibration.md.

    write: None where the model cannot write. CalibrationError: not found, unreadable, or too little text.
    """
    if dataset is None:
        return _default(shape, encode, write)
    needed = shape.rows * _text_length(shape)
    stream = _take(datasets.documents(dataset), needed, encode)
    if len(stream) < needed:
        raise _too_little(dataset, len(stream), needed)
    return _finish(stream, {dataset: needed}, 0, dataset, shape)


def _default(shape: Shape, encode: Encode, write: Write | None) -> Calibration:
    width, random_rows = _text_length(shape), shape.rows // RANDOM_SHARE
    own_rows = 0 if write is None else (shape.rows - random_rows) // OWN_SHARE
    stream, composition = _at_hand((shape.rows - random_rows - own_rows) * width, encode)
    if write is not None and own_rows:
        stream += _written(write, own_rows * width, shape.vocab_size)
        composition["the model's own"] = own_rows * width
    return _finish(stream, composition, random_rows, DEFAULT_NAME, shape)


def _at_hand(needed: int, encode: Encode) -> tuple[list[int], dict[str, int]]:
    """Token stream, and tokens by source."""
    for at_most in DOCUMENT_TOKENS:
        by_source = _from_sources(needed, encode, at_most)
        stream = [token for tokens in by_source.values() for token in tokens]
        if len(stream) >= needed:
            return stream, {name: len(tokens) for name, tokens in by_source.items()}
    raise _too_little("at hand (prose of ours, the Python installation, its packages)", len(stream), needed)


def _written(write: Write, needed: int, vocab_size: int) -> list[int]:
    """Passages that begin with any tokens: begun with words of the text at hand they would be about the same."""
    count = -(-needed // PASSAGE)
    starts = torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(0))
    found: list[int] = write(starts, PASSAGE).flatten()[:needed].tolist()
    return found


def _from_sources(needed: int, encode: Encode, at_most: int | None) -> dict[str, list[int]]:
    """Tokens of each source by its weight, `at_most` of a document; what one lacks, those after it make up for."""
    found = dict[str, list[int]]()
    weights_left = sum(weight for weight, _ in corpus.SOURCES.values())
    for name, (weight, source) in corpus.SOURCES.items():
        found[name] = _take(corpus.documents(source), -(-needed * weight // weights_left), encode, at_most)
        needed -= len(found[name])
        weights_left -= weight
    return found


def _take(documents: Iterator[str], needed: int, encode: Encode, at_most: int | None = None) -> list[int]:
    """The first `needed` tokens of the documents, `at_most` of each."""
    stream = list[int]()
    for document in documents:
        length = len(document) if at_most is None else 1  # the first block is enough for a share of a document
        for start in range(0, length, ENCODE_BLOCK):
            stream += encode(document[start : start + ENCODE_BLOCK])[:at_most]
            if len(stream) >= needed:
                return stream[:needed]
    return stream


def _finish(
    stream: list[int], composition: dict[str, int], random_rows: int, dataset: str, shape: Shape
) -> Calibration:
    width = _text_length(shape)
    rows = torch.tensor(stream, dtype=torch.int64).view(-1, width)
    if random_rows:
        made = torch.randint(shape.vocab_size, (random_rows, width), generator=torch.Generator().manual_seed(0))
        rows = torch.cat([rows, made])
        composition = composition | {"random tokens": made.numel()}
    rows = rows.where(rows < shape.vocab_size, 0)
    if shape.bos is not None:
        rows = torch.nn.functional.pad(rows, (1, 0), value=shape.bos)
    record = {
        "rows": shape.rows,
        "length": shape.length,
        "dataset": dataset.rstrip("/").rpartition("/")[2] or dataset,
        "tokens_by_source": composition,
        "sha256": fingerprint(rows),
    }
    return Calibration(rows, record)


def fingerprint(tokens: Tensor) -> str:
    """SHA-256 of the tokens as little-endian 64-bit integers."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()


def _text_length(shape: Shape) -> int:
    return shape.length - (shape.bos is not None)


def _too_little(what: str, found: int, needed: int) -> CalibrationError:
    return CalibrationError(
        f"calibration text {what} has {found} tokens, but the rows asked for need {needed}; "
        "give more text, or ask for fewer or shorter rows"
    )
