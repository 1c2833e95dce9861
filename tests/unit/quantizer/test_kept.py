"""What a job keeps comes back as it was, or is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from polybit.errors import JobError
from polybit.quantizer.kept import read_json, read_tensors, write_json, write_tensors

TENSORS = {
    "half": torch.arange(6).half().view(2, 3),
    "brain": torch.arange(3).bfloat16(),
    "one": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "deep" / "kept.safetensors", TENSORS)
    return tmp_path / "deep" / "kept.safetensors"


def refused(path: Path) -> bool:
    with pytest.raises(JobError, match=rf"^{re.escape(str(path))} is damaged[^\n]*--no-resume"):
        read_tensors(path)
    return True


def test_tensors_come_back(kept: Path) -> None:
    found = read_tensors(kept)
    assert found.keys() == TENSORS.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in TENSORS.items()
    )


def test_every_flipped_bit_of_the_numbers_is_noticed(kept: Path) -> None:
    sound = kept.read_bytes()
    numbers = len(sound) - sum(tensor.nbytes for tensor in TENSORS.values())
    for at in range(numbers, len(sound)):
        kept.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        assert refused(kept)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {("other" if name == "one" else name): tensor for name, tensor in tensors.items()}


def reshaped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"half": tensors["half"].view(3, 2)}


def lacking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "none"}


@pytest.mark.parametrize("change", [renamed, reshaped, lacking])
def test_a_header_that_tells_something_else_is_noticed(kept: Path, change: object) -> None:
    assert callable(change)
    with safe_open(kept, "pt") as file:
        record = file.metadata()
    save_file(change(load_file(kept)), kept, metadata=record)
    assert refused(kept)


def test_tensors_without_a_sum_are_not_trusted(kept: Path) -> None:
    save_file(TENSORS, kept)
    assert refused(kept)


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 0.1, None], "a": "ü"}
    write_json(tmp_path / "kept.json", value)
    assert read_json(tmp_path / "kept.json") == value


@pytest.mark.parametrize("text", ["", "[]", "7", '{"value": 1}', "[" * 9999])
def test_json_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(JobError, match=r"kept\.json is damaged"):
        read_json(tmp_path / "kept.json")


def test_a_changed_number_in_json_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    write_json(path, {"bits": 4})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": {"bits": 5}}))
    with pytest.raises(JobError, match=r"kept\.json is damaged"):
        read_json(path)
