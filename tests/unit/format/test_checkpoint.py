import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polybit.errors import FormatError
from polybit.format.checkpoint import Checkpoint


def save(folder: Path, name: str, **tensors: torch.Tensor) -> Path:
    save_file({key.replace("__", "."): tensor for key, tensor in tensors.items()}, folder / name)
    return folder / name


def test_finds_tensors_in_every_file_whatever_an_index_says(tmp_path: Path) -> None:
    save(tmp_path, "model-00001-of-00002.safetensors", a=torch.arange(3))
    second = save(tmp_path, "anything.safetensors", b=torch.ones(2, 4).half())
    (tmp_path / "model.safetensors.index.json").write_text("stale")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.names() == {"a", "b"}
    assert "b" in checkpoint
    assert "c" not in checkpoint
    assert checkpoint.file_of("b") == second
    assert (checkpoint.shape("b"), checkpoint.dtype("b"), checkpoint.num_bytes("b")) == ((2, 4), torch.float16, 16)
    assert torch.equal(checkpoint.tensor("a"), torch.arange(3))


def test_renames_apply_in_order_and_bind_to_the_start(tmp_path: Path) -> None:
    save(tmp_path, "m.safetensors", h__0__h=torch.zeros(1), x__h=torch.zeros(2))
    checkpoint = Checkpoint.open(tmp_path, (("^h.", "model.layers."), (".h", ".mlp"), ("^mlp", "never")))
    assert checkpoint.names() == {"model.layers.0.mlp", "x.mlp"}
    assert checkpoint.tensor("x.mlp").shape == (2,)


@pytest.mark.parametrize("other", ["q_weight", "qweight"])
def test_a_matrix_stored_in_two_ways_is_of_two_models(tmp_path: Path, other: str) -> None:
    save(tmp_path, "model.safetensors", up__weight=torch.zeros(4, 4))
    save(tmp_path, "output.safetensors", **{f"up__{other}": torch.zeros(1, 4, dtype=torch.int32)})
    words = rf"both up\.{other} \(output\.safetensors\) and up\.weight \(model\.safetensors\)"
    with pytest.raises(FormatError, match=words):
        Checkpoint.open(tmp_path).kind("up")


def test_narrow_reads_a_part_along_either_axis(tmp_path: Path) -> None:
    whole = torch.arange(24).reshape(4, 6)
    save(tmp_path, "m.safetensors", a=whole)
    checkpoint = Checkpoint.open(tmp_path)
    assert torch.equal(checkpoint.narrow("a", 0, 1, 3), whole[1:3])
    assert torch.equal(checkpoint.narrow("a", 1, 2, 6), whole[:, 2:6])


@pytest.mark.parametrize(("suffix", "kind"), [("q_weight", "exl2"), ("qweight", "gptq"), ("weight", "dense")])
def test_kind_by_the_tensor_that_is_there(tmp_path: Path, suffix: str, kind: str) -> None:
    save(tmp_path, "m.safetensors", **{f"up.{suffix}": torch.zeros(1)})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.kind("up") == kind
    assert checkpoint.kind("down") is None


def test_the_same_tensor_twice_is_no_harm(tmp_path: Path) -> None:
    save(tmp_path, "a.safetensors", w=torch.ones(3))
    save(tmp_path, "b.safetensors", w=torch.ones(3))
    assert torch.equal(Checkpoint.open(tmp_path).tensor("w"), torch.ones(3))


@pytest.mark.parametrize("other", [torch.zeros(3), torch.ones(4), torch.ones(3).half()])
def test_two_tensors_of_one_name_are(tmp_path: Path, other: torch.Tensor) -> None:
    save(tmp_path, "a.safetensors", w=torch.ones(3))
    save(tmp_path, "b.safetensors", w=other)
    with pytest.raises(FormatError, match=r"w is in a\.safetensors and, with other contents, in b\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path, "m.safetensors", w=torch.ones(300))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FormatError, match=r"m\.safetensors cannot be read as safetensors: .*; fetch the file again"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("x.gguf", "give the .gguf file itself"), ("pytorch_model.bin", "pickled"), ("config.json", "download complete")],
)
def test_a_folder_without_weights_gets_a_hint(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FormatError, match=hint):
        Checkpoint.open(tmp_path)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such folder"):
        Checkpoint.open(tmp_path / "typo")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save(tmp_path, "m.safetensors", w=torch.ones(3))
    with pytest.raises(FormatError, match=r"lm_head\.weight is in none of the weight files"):
        Checkpoint.open(tmp_path).tensor("lm_head.weight")


def test_check_names_type_and_shape(tmp_path: Path) -> None:
    save(tmp_path, "m.safetensors", w=torch.ones(3, 4))
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check("w", (torch.float32,), (None, 4))
    with pytest.raises(FormatError, match=r"w is float32, expected int16 or int32 \(m\.safetensors\)"):
        checkpoint.check("w", (torch.int16, torch.int32), (3, 4))
    with pytest.raises(FormatError, match=r"w has shape \[3, 4\], expected \[any, 5\]"):
        checkpoint.check("w", (torch.float32,), (None, 5))


def test_a_type_that_torch_lacks_is_refused_only_when_used(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(FormatError, match=r"w has data type F4, which is not supported"):
        checkpoint.tensor("w")


def test_a_file_of_somebody_else_is_told_from_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"")  # cannot be read anyhow; and root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path / "m.safetensors", os.R_OK))
    with pytest.raises(FormatError, match=r"m\.safetensors may not be read by this user"):
        Checkpoint.open(tmp_path)
