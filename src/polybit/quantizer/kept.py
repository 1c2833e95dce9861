"""Files that a job keeps for itself, each with a SHA-256 of its contents: no job goes on with a damaged one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polybit.errors import JobError
from polybit.format.files import atomic_write_json, make_folder, replacing, unwritable

SUM = "sha256"


def corrupt(path: Path) -> JobError:
    return JobError(f"{path} is damaged or missing; start over with --no-resume (resume=False)")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """FormatError where it cannot be written."""
    make_folder(path.parent)
    held = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(held, temporary, metadata={SUM: sum_of_tensors(held)})
    except SafetensorError as error:
        raise unwritable(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """JobError where they are not there or not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - it is no mapping
            wanted = (file.metadata() or {}).get(SUM)
    except (OSError, SafetensorError):
        raise corrupt(path) from None
    if sum_of_tensors(found) != wanted:
        raise corrupt(path)
    return found


def write_json(path: Path, value: Any) -> None:
    """FormatError where it cannot be written."""
    make_folder(path.parent)
    atomic_write_json(path, {SUM: sum_of_json(value), "value": value})


def read_json(path: Path) -> Any:
    """JobError where it is not there or not what was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        value, wanted = found["value"], found[SUM]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise corrupt(path) from None
    if sum_of_json(value) != wanted:
        raise corrupt(path)
    return value


def sum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sum_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
