"""Bits per weight of folders whose sizes are known beforehand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polybit.format import exl2
from polybit.model.sizes import bits_per_weight, file_bytes, head_size, layer_sizes
from polybit.model.source import open_model
from random_model import write_random_model

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "model")


def quantize_one(folder: Path, bits: int) -> int:
    """Replace DOWN by packed zeros of `bits`; returns what it takes on disk, in bits."""
    tensors = load_file(folder / "model.safetensors")
    out_features, in_features = tensors.pop(f"{DOWN}.weight").shape
    layout = exl2.Layout((exl2.Group(bits, 32),) * (in_features // 32))
    q = torch.zeros(in_features, out_features, dtype=torch.uint8)
    codes = torch.zeros(len(layout.groups), out_features, dtype=torch.uint8)
    packed = exl2.encode(q, codes, torch.ones(len(layout.groups)).half(), layout, torch.arange(in_features))
    tensors |= exl2.to_tensors(DOWN, packed)
    save_file(tensors, folder / "model.safetensors")
    return exl2.storage_bits(layout, out_features, bias=False)


def test_an_unquantized_folder_has_sixteen_bits_everywhere(folder: Path) -> None:
    layers = layer_sizes(open_model(folder))
    assert [len(layer) for layer in layers] == [7, 7]
    assert {size.bpw for layer in layers for size in layer} == {16.0}


def test_a_packed_matrix_counts_all_that_belongs_to_it(folder: Path) -> None:
    stored = quantize_one(folder, bits=4)
    (size,) = (size for size in layer_sizes(open_model(folder))[1] if size.key == DOWN)
    assert size.stored_bits == stored
    assert 4 < size.bpw < 6


def test_the_average_counts_weights_not_matrices(folder: Path) -> None:
    quantize_one(folder, bits=4)
    sizes = [size for layer in layer_sizes(open_model(folder)) for size in layer]
    total = sum(size.stored_bits for size in sizes)
    assert bits_per_weight(sizes) == total / sum(size.num_weights for size in sizes)


def test_a_tied_head_has_no_size_of_its_own(tmp_path: Path) -> None:
    assert head_size(open_model(write_random_model(tmp_path / "tied", {"tie_word_embeddings": True}))) is None
    untied = head_size(open_model(write_random_model(tmp_path / "untied")))
    assert untied is not None
    assert (untied.num_weights, untied.bpw) == (96 * 64, 16.0)


def test_file_bytes_is_the_size_of_the_weight_files(folder: Path) -> None:
    assert file_bytes(open_model(folder)) == (folder / "model.safetensors").stat().st_size
