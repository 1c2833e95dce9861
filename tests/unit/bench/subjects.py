"""Small things to measure, and no time to do it in."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from polybit.bench import ceilings, timing
from polybit.bench.subject import Request, Subject, SyntheticSubject, open_subject
from polybit.format.exl2 import to_tensors
from polybit.model.options import LoadOptions
from polybit.model.source import vector_names
from random_model import TINY_LLAMA

SMALL: dict[str, Any] = {**TINY_LLAMA, "hidden_size": 128, "intermediate_size": 256}


def write_config(folder: Path, **entries: Any) -> Path:
    """A config.json of a small Llama."""
    path = folder / "small.json"
    path.write_text(json.dumps({**SMALL, **entries}))
    return path


def synthetic(
    folder: Path,
    bits: float = 4.0,
    seed: int = 0,
    dtype: str | None = None,
    backend: str | None = None,
    **entries: Any,
) -> Subject:
    options = LoadOptions(device="cpu", dtype=dtype, backend=backend)
    return open_subject(Request(None, f"{write_config(folder, **entries)}@{bits}", 6, seed, options))


def write_exl2_folder(folder: Path, subject: Subject) -> Path:
    """The synthetic model as a converter would have left it."""
    assert isinstance(subject, SyntheticSubject)
    weights, model = subject.weights, subject.model
    tensors = {f"{model.embedding.key}.weight": weights.embedding(model.embedding)}
    tensors |= {name: weights.vector(name) for name in vector_names(model) if name not in tensors}
    for linear in (*model.linears, model.head.linear):
        tensors |= to_tensors(linear.key, weights.tensor(linear))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    save_file(tensors, folder / "model.safetensors")
    return folder


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a measurement comes to does not matter in a test."""
    monkeypatch.setattr(ceilings, "CPU_BUFFER", 1 << 20)
    monkeypatch.setattr(ceilings, "CPU_SIDE", 32)
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.0)
