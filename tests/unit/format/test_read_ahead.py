"""Reading ahead gives the tensors that reading gives, part by part; a file that ends early is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polybit.errors import FormatError
from polybit.format import read_ahead as module
from polybit.format.checkpoint import Checkpoint
from polybit.format.read_ahead import Part, read_ahead, read_into

CPU = torch.device("cpu")
TENSORS = {
    "a.weight": torch.randn(300, 70),
    "b.weight": torch.randint(-(2**31), 2**31 - 1, (333, 64), dtype=torch.int32),
    "c.weight": torch.randn(90, 333).bfloat16(),
    "c.bias": torch.randn(5),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files; a buffer holds a small part of a tensor, and what is below it is not read ahead."""
    monkeypatch.setattr(module, "BUFFER_BYTES", 1001)
    monkeypatch.setattr(module, "SMALLEST", 1001)
    save_file({name: TENSORS[name] for name in ("a.weight", "b.weight")}, tmp_path / "1.safetensors", {"made": "here"})
    save_file({name: TENSORS[name] for name in ("c.weight", "c.bias")}, tmp_path / "2.safetensors")
    return tmp_path


def test_each_part_holds_its_own_large_tensors(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    parts = [Part(("a.weight",), CPU), Part((), CPU), Part(("b.weight", "c.weight", "c.bias", "absent"), CPU)]
    found = list(read_ahead(checkpoint, parts))
    assert [sorted(view._held) for view in found] == [["a.weight"], [], ["b.weight", "c.weight"]]
    for view in found:
        for name, tensor in TENSORS.items():  # whether it is held or not
            assert torch.equal(view.tensor(name), tensor)
            assert view.tensor(name).dtype == tensor.dtype


def test_the_next_part_is_read_while_one_is_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Part] = []
    real = module._Reader.start
    monkeypatch.setattr(
        module._Reader, "start", lambda reader, c, part: (started.append(part), real(reader, c, part))[1]
    )
    parts = [Part((name,), CPU) for name in TENSORS]
    views = read_ahead(Checkpoint.open(folder), parts)
    next(views)
    assert started == parts[:2]
    next(views)
    assert started == parts[:3]


def test_a_file_that_was_cut_since_it_was_opened_is_named(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    path = folder / "1.safetensors"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FormatError, match=r"1\.safetensors cannot be read as safetensors: it ends \d+ bytes early"):
        list(read_ahead(checkpoint, [Part(("a.weight", "b.weight"), CPU)]))


def test_leaving_early_ends_the_threads(folder: Path) -> None:
    views = read_ahead(Checkpoint.open(folder), [Part(tuple(TENSORS), CPU)] * 3)
    next(views)
    views.close()
    with pytest.raises(StopIteration):
        next(views)


@pytest.mark.parametrize("name", list(TENSORS))
def test_one_tensor_goes_where_it_is_told(folder: Path, name: str) -> None:
    target = torch.empty_like(TENSORS[name])
    read_into(target, Checkpoint.open(folder), name)
    assert torch.equal(target, TENSORS[name])


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    (folder / "1.safetensors").unlink()
    with pytest.raises(FormatError, match=r"1\.safetensors cannot be read as safetensors"):
        read_into(torch.empty_like(TENSORS["a.weight"]), checkpoint, "a.weight")
