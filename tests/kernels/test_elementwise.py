"""Norms, activations, rope and embedding, against formulas worked out in float64."""

import math

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from kernels.definitions import turned
from polybit.kernels import reference
from polybit.spec import Activation

ODD_SHAPES = [(1, 32), (3, 576), (7, 33), (2, 20011)]


def test_rms_norm_by_hand(backend, device) -> None:
    x = torch.tensor([[3.0, 4.0]], device=device)  # rms = sqrt(12.5)
    y = backend.rms_norm(x, torch.tensor([1.0, 2.0], device=device), eps=0.0, offset=0.0)
    assert_close(y, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(backend, device, dtype, random, shape, offset) -> None:
    x, w = _randn(shape, dtype, random, device), _randn(shape[-1:], dtype, random, device)
    x64 = x.double()
    expected = x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (w.double() + offset)
    assert_close(backend.rms_norm(x, w, 1e-5, offset), expected)


def test_norms_take_a_weight_per_head(backend, device, random) -> None:
    x, w = _randn((5, 3, 8), torch.float32, random, device), _randn((3, 8), torch.float32, random, device)
    by_head = torch.stack([backend.rms_norm(x[:, h], w[h], 1e-6, 0.0) for h in range(3)], 1)
    assert_close(backend.rms_norm(x, w, 1e-6, 0.0), by_head)
    by_head = torch.stack([backend.layer_norm(x[:, h], w[h], None, 1e-6) for h in range(3)], 1)
    assert_close(backend.layer_norm(x, w, None, 1e-6), by_head)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_wide_residual_takes_narrow_weights(backend, device, random, dtype) -> None:
    x, w = _randn((3, 96), torch.float32, random, device), _randn((96,), dtype, random, device)
    x64 = x.double()
    expected = x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
    assert_close(backend.rms_norm(x, w, 1e-5, 0.0), expected)


def test_rms_norm_keeps_fp16_range(backend, device) -> None:
    x = torch.full((1, 64), 60000.0, dtype=torch.float16, device=device)  # squares overflow fp16
    assert_close(backend.rms_norm(x, torch.ones(64, dtype=torch.float16, device=device), 1e-6, 0.0), torch.ones(1, 64))


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_norm(backend, device, dtype, random, shape, has_bias) -> None:
    x, w = _randn(shape, dtype, random, device) + 3, _randn(shape[-1:], dtype, random, device)
    b = _randn(shape[-1:], dtype, random, device) if has_bias else None
    x64 = x.double()
    centred = x64 - x64.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
    assert_close(backend.layer_norm(x, w, b, 1e-5), expected if b is None else expected + b.double())


def _act(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case Activation.SILU:
            return x / (1 + (-x).exp())
        case Activation.GELU:
            return x * (1 + torch.special.erf(x / math.sqrt(2))) / 2
        case Activation.GELU_TANH:
            return x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()) / 2
        case Activation.RELU:
            return x * (x > 0)


@pytest.mark.parametrize("activation", Activation)
def test_activations(backend, device, dtype, random, activation) -> None:
    x, up = _randn((5, 97), dtype, random, device) * 3, _randn((5, 97), dtype, random, device)
    assert_close(backend.activate(x, activation), _act(x.double(), activation))
    assert_close(backend.gated_activate(x, up, activation), _act(x.double(), activation) * up.double())


def test_the_reference_rounds_a_gated_activation_once(device, random) -> None:
    x, up = (_randn((64, 97), torch.float16, random, device) for _ in range(2))
    exact = reference.activate(x.float(), Activation.SILU) * up.float()
    assert torch.equal(reference.gated_activate(x, up, Activation.SILU), exact.half())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotated"), [(8, 8), (64, 64), (80, 32)])
def test_rope_is_a_complex_rotation(backend, device, dtype, random, interleaved, head_dim, rotated) -> None:
    heads = [_randn((6, num_heads, head_dim), dtype, random, device) for num_heads in (5, 2)]
    angles = torch.rand(40, rotated // 2, generator=random, dtype=torch.float64).to(device) * 100
    positions = torch.tensor([3, 0, 39, 3, 17, 8], device=device)
    found = backend.rope(*heads, positions, angles.cos().float(), angles.sin().float(), interleaved)
    for x, actual in zip(heads, found, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, turned(x.double(), angles[positions], interleaved))


def test_columns_of_a_wider_matrix_are_turned_and_written(backend, device, random) -> None:
    """Queries, keys and values need not be dense: products may have padding columns."""
    wide = _randn((3, 160), torch.float32, random, device)
    q, k = wide[:, :96].view(3, 6, 16), wide[:, 100:132].view(3, 2, 16)
    angles = torch.rand(3, 8, generator=random, dtype=torch.float64).to(device)
    positions = torch.arange(3, device=device)
    found = backend.rope(q, k, positions, angles.cos().float(), angles.sin().float(), False)
    for x, actual in zip((q, k), found, strict=True):
        assert_close(actual, turned(x.double(), angles, False))
    pages = [torch.zeros(1, 3, 2, 16, device=device) for _ in range(2)]
    backend.write_kv(k, q[:, :2], *pages, positions)
    assert torch.equal(pages[0][0], k)
    assert torch.equal(pages[1][0], q[:, :2])


@pytest.mark.parametrize("page_dtype", [torch.float32, torch.float16])
def test_write_kv(backend, device, dtype, random, page_dtype) -> None:
    """Rows land in their slots, in the pages' type; every other slot stays as it was."""
    k, v = (_randn((4, 3, 20), dtype, random, device) for _ in range(2))
    slots = torch.tensor([9, 2, 14, 0], device=device)
    pages = [torch.full((5, 3, 3, 20), 7.0, dtype=page_dtype, device=device) for _ in range(2)]
    backend.write_kv(k, v, *pages, slots)
    for x, written in zip((k, v), pages, strict=True):
        expected = torch.full((15, 3, 20), 7.0, dtype=page_dtype)
        expected[slots.cpu()] = x.cpu().to(page_dtype)
        assert torch.equal(written.cpu().flatten(0, 1), expected)


def test_embedding(backend, device, random) -> None:
    table = _randn((11, 6), torch.float16, random, device)
    tokens = torch.tensor([0, 10, 3, 3], device=device)
    rows = backend.embedding(tokens, table, 2.5)
    assert rows.dtype == torch.float32
    assert_close(rows, table.double()[tokens] * 2.5)


def _randn(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=random).to(device, dtype)
