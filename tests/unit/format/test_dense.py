from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polybit.errors import FormatError
from polybit.format.checkpoint import Checkpoint
from polybit.format.dense import read_dense, read_floats
from polybit.spec import Linear, Source


def checkpoint(folder: Path, **tensors: torch.Tensor) -> Checkpoint:
    save_file(
        {name.replace("__", "."): tensor.contiguous() for name, tensor in tensors.items()}, folder / "m.safetensors"
    )
    return Checkpoint.open(folder)


def test_plain_matrix_and_bias_come_as_stored(tmp_path: Path) -> None:
    weight, bias = torch.randn(6, 4).bfloat16(), torch.randn(6).bfloat16()
    read = read_dense(checkpoint(tmp_path, up__weight=weight, up__bias=bias), Linear("up", 4, 6, bias=True))
    assert torch.equal(read[0], weight)
    assert read[1] is not None
    assert torch.equal(read[1], bias)


def test_a_slice_of_a_fused_matrix(tmp_path: Path) -> None:
    fused, bias = torch.randn(10, 4), torch.randn(10)
    files = checkpoint(tmp_path, qkv__weight=fused, qkv__bias=bias)
    weight, cut_bias = read_dense(files, Linear("k", 4, 2, bias=True, source=Source("qkv", 6, 8)))
    assert torch.equal(weight, fused[6:8])
    assert cut_bias is not None
    assert torch.equal(cut_bias, bias[6:8])


def test_a_fused_and_transposed_matrix(tmp_path: Path) -> None:
    """[in, 3 * out], as GPT-2 has it; the bias has only the one axis."""
    fused, bias = torch.randn(4, 12), torch.randn(12)
    files = checkpoint(tmp_path, c_attn__weight=fused, c_attn__bias=bias)
    source = Source("c_attn", 4, 8, axis=1, transposed=True)
    weight, cut_bias = read_dense(files, Linear("k", 4, 4, bias=True, source=source))
    assert torch.equal(weight, fused[:, 4:8].T)
    assert weight.is_contiguous()
    assert cut_bias is not None
    assert torch.equal(cut_bias, bias[4:8])


def test_rows_interleaved_per_kv_head(tmp_path: Path) -> None:
    """Two kv heads of (two q rows, one k row, one v row) each."""
    fused = torch.arange(8.0)[:, None].expand(8, 3)
    files = checkpoint(tmp_path, wqkv__weight=fused)
    q, _ = read_dense(files, Linear("q", 3, 4, source=Source("wqkv", 0, 2, runs=2)))
    v, _ = read_dense(files, Linear("v", 3, 2, source=Source("wqkv", 3, 4, runs=2)))
    assert q[:, 0].tolist() == [0, 1, 4, 5]
    assert v[:, 0].tolist() == [3, 7]


def test_stacked_experts_cut_along_the_input_axis_keep_their_bias(tmp_path: Path) -> None:
    """w2 of all experts as [experts * in, out], multiplied from the right."""
    stacked, bias = torch.randn(6, 4), torch.randn(4)
    files = checkpoint(tmp_path, w2__weight=stacked, w2__bias=bias)
    weight, whole_bias = read_dense(files, Linear("e1", 3, 4, bias=True, source=Source("w2", 3, 6, transposed=True)))
    assert torch.equal(weight, stacked[3:6].T)
    assert whole_bias is not None
    assert torch.equal(whole_bias, bias)


def test_a_transposed_matrix_may_be_stored_under_its_own_name(tmp_path: Path) -> None:
    square = torch.randn(4, 4)
    files = checkpoint(tmp_path, c_proj__weight=square)
    linear = Linear("c_proj", 4, 4, source=Source("c_proj", 0, 4, axis=1, transposed=True))
    assert torch.equal(read_dense(files, linear)[0], square.T)


def test_a_folder_that_is_split_already(tmp_path: Path) -> None:
    weight = torch.randn(2, 4)
    files = checkpoint(tmp_path, k__weight=weight)
    assert torch.equal(read_dense(files, Linear("k", 4, 2, source=Source("qkv", 6, 8)))[0], weight)


def test_a_bias_of_zeros_too_many_is_dropped(tmp_path: Path) -> None:
    files = checkpoint(tmp_path, k__weight=torch.ones(2, 4), k__bias=torch.zeros(2))
    assert read_dense(files, Linear("k", 4, 2))[1] is None


@pytest.mark.parametrize(
    ("linear", "finding"),
    [
        (Linear("k", 4, 3), r"k\.weight has shape \[2, 4\], expected \[3, 4\] \(m\.safetensors\)"),
        (Linear("k", 4, 2, bias=True), r"k\.bias is missing, but k has a bias"),
        (Linear("odd", 4, 2, bias=True), r"odd\.bias gives 3 values for odd, expected 2"),
        (Linear("odd", 4, 2), r"odd\.bias is there and not zero, but this layer has no bias"),
        (Linear("ints", 4, 2), r"ints\.weight is int32, expected float16 or bfloat16 or float32"),
        (Linear("flat", 4, 2), r"flat\.weight has shape \[8\], expected \[2, 4\]"),
        (Linear("gone", 4, 2), r"gone\.weight is in none of the weight files"),
        (Linear("v", 5, 1, source=Source("k", 1, 2)), r"k\.weight gives \[1, 4\] for v, expected \[1, 5\]"),
        (Linear("v", 4, 2, source=Source("k", 2, 4)), r"k\.weight has 2 entries along axis 0, .* 1 x 4"),
        (Linear("v", 4, 2, source=Source("k", 0, 1, runs=3)), r"k\.weight has 2 entries along axis 0, .* 3 x 1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, linear: Linear, finding: str) -> None:
    files = checkpoint(
        tmp_path,
        k__weight=torch.ones(2, 4),
        odd__weight=torch.ones(2, 4),
        odd__bias=torch.ones(3),
        ints__weight=torch.ones(2, 4, dtype=torch.int32),
        flat__weight=torch.ones(8),
    )
    with pytest.raises(FormatError, match=finding):
        read_dense(files, linear)


def test_floats_of_a_shape(tmp_path: Path) -> None:
    files = checkpoint(tmp_path, norm__weight=torch.ones(8))
    assert torch.equal(read_floats(files, "norm.weight", (8,)), torch.ones(8))
    with pytest.raises(FormatError, match=r"norm\.weight has shape \[8\], expected \[4\]"):
        read_floats(files, "norm.weight", (4,))
