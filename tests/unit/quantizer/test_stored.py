"""The fp16 roundings of what is not quantized, spelled out in numpy."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from polybit import spec
from polybit.format.checkpoint import Checkpoint
from polybit.quantizer.stored import attention_norms, embedding_tensors, norm_tensors

F2 = np.float16


def checkpoint(folder: Path, **tensors: Tensor) -> Checkpoint:
    save_file({f"{name}.weight": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_a_plain_norm_is_its_fp16(tmp_path: Path) -> None:
    found = norm_tensors(checkpoint(tmp_path, n=random(64)), spec.RMSNorm("n", 64, 1e-5))
    assert torch.equal(found["n.weight"], random(64).half())


def test_a_norm_with_an_offset_went_through_the_sum(tmp_path: Path) -> None:
    found = norm_tensors(checkpoint(tmp_path, n=random(64)), spec.RMSNorm("n", 64, 1e-5, offset=1.0))
    w = random(64).half().numpy()
    expected = ((w + F2(1)).astype(F2) - F2(1)).astype(F2)
    np.testing.assert_array_equal(found["n.weight"].numpy(), expected)
    assert (expected != w).any()


def test_a_scaled_embedding_went_through_the_product(tmp_path: Path) -> None:
    found = embedding_tensors(checkpoint(tmp_path, e=random(8, 32)), spec.Embedding("e", 8, 32, scale=0.7))
    w = random(8, 32).half().numpy()
    expected = ((w.astype(np.float32) * np.float32(0.7)).astype(F2) / np.float32(0.7)).astype(F2)
    np.testing.assert_array_equal(found["e.weight"].numpy(), expected)
    assert (expected != w).any()


def test_head_norms_are_stored_once_a_head(tmp_path: Path) -> None:
    found = dict[str, Tensor]()
    linear = spec.Linear("x", 64, 64)
    norms = {"q_norm": spec.RMSNorm("q", 16, 1e-5), "k_norm": spec.RMSNorm("k", 16, 1e-5)}
    node = spec.Attention(linear, linear, linear, linear, 4, 2, 16, 1.0, None, **norms)
    for tensors in attention_norms(checkpoint(tmp_path, q=random(16), k=random(2, 16)), node):
        found |= tensors
    assert torch.equal(found["q.weight"], random(16).half().expand(4, 16))
    assert torch.equal(found["k.weight"], random(2, 16).half())


def test_a_norm_over_all_heads_stays_as_it_is(tmp_path: Path) -> None:
    linear = spec.Linear("x", 64, 64)
    node = spec.Attention(linear, linear, linear, linear, 4, 2, 16, 1.0, None, q_norm=spec.RMSNorm("q", 64, 1e-5))
    found, _ = attention_norms(checkpoint(tmp_path, q=random(64)), node)
    assert found["q.weight"].shape == (64,)
