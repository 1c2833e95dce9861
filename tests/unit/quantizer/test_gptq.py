"""Section 9 of the format, written a second time in plain numpy from its text, and compared integer for integer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polybit.format.exl2 import Layout, dequantize
from polybit.kernels.reference import rounding as reference
from polybit.kernels.rounding import Rounding, choose_rounding
from polybit.quantizer.candidates import ParameterSet, parameter_set
from polybit.quantizer.gptq import Quantized, quantize, round_to_nearest
from polybit.quantizer.hessian import Factor, factorize

F4 = np.float32
ROUNDINGS = [reference] + [r for r in [choose_rounding(torch.device("cpu"))] if r is not reference]
MIXTURES = [
    *(f"100%x{bits}b/g{size}" for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)),
    "5%x6b/g32 + 20%x3b/g64 + 75%x2b/g64",
    "5%x8b/g32 + 10%x4b/g128 + 85%x3b/g128",
    "15%x8b/g128 + 85%x6b/g128",
    "10%x5b/g32 + 90%x4b/g32",
]


def plain_layout(found: ParameterSet, k: int) -> list[tuple[int, int]]:
    left, groups = k, []
    for b, p, size in zip(found.bits, found.shares, found.group_sizes, strict=True):
        for _ in range(math.ceil(min(k * p, left) / size)):
            groups.append((b, min(size, left)))
            left -= min(size, left)
    return groups


def plain_factor(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    perm = np.argsort(-np.diag(h), kind="stable")
    h = h[perm][:, perm].copy()
    h += np.eye(len(h), dtype=F4) * max(F4(0.12) * np.diag(h).mean(), F4(1e-5))
    return perm, np.linalg.cholesky(np.linalg.inv(h.astype(np.float64))).T.astype(F4)


def plain_scales(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.float16]:
    zero, maxq = 2 ** (bits - 1), 2**bits - 1
    base = (np.abs(x).max(0) + F4(1e-12)) / F4(maxq / 2)
    s = np.clip(np.rint(np.sqrt(base / base.max()) * F4(16)), 1, 16).astype(F4)
    trial = (s / F4(16)) ** 2 * base.max()
    i = np.arange(97, dtype=F4) / F4(96)
    factors = F4(0.7) * (1 - i) + F4(1.2) * i
    costs = []
    for p in factors:
        error = np.clip(np.rint(x / (trial * p)), -zero, maxq - zero) * (trial * p) - x
        costs.append((np.abs(error).astype(np.float64) ** 3.5).sum())
    return s - 1, np.float16(base.max() * factors[int(np.argmin(costs))])


def plain_gptq(w: np.ndarray, perm: np.ndarray, u: np.ndarray, groups: list[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    w, q = w[perm].copy(), np.zeros(w.shape, np.uint8)
    dense, all_codes, maxima, a = np.zeros_like(w), [], [], 0
    for bits, rows in groups:
        e, zero, maxq = a + rows, 2 ** (bits - 1), 2**bits - 1
        codes, top = plain_scales(w[a:e], bits)
        scale = (((codes + 1) ** 2).astype(np.float16) * (top * np.float16(1 / 256))).astype(F4)
        errors = np.zeros((rows, w.shape[1]), F4)
        for c in range(a, e):
            with np.errstate(divide="ignore", invalid="ignore"):
                level = np.rint(w[c] / scale) + F4(zero)
            level = np.where(np.isnan(level), F4(maxq), np.clip(level, 0, maxq))
            q[c] = level
            dense[c] = ((level - F4(zero)).astype(np.float16) * scale.astype(np.float16)).astype(F4)
            errors[c - a] = (w[c] - dense[c]) / u[c, c]
            w[c:e] -= u[c, c:e, None] * errors[c - a]
        w[e:] -= u[a:e, e:].T @ errors
        all_codes.append(codes)
        maxima.append(top)
        a = e
    return q, np.array(all_codes, np.uint8), np.array(maxima, np.float16), dense


def correlated(seed: int, k: int, n: int, scale: float = 0.03) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [K, N] in fp16 values, and a Hessian [K, K] of inputs that share a few directions."""
    make = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, 8, generator=make) * torch.rand(k, 1, generator=make)
    x = torch.randn(4 * k, 8, generator=make) @ mix.T + 0.3 * torch.randn(4 * k, k, generator=make)
    weight = torch.randn(k, n, generator=make) * scale
    return weight.half().float(), x.T @ x / 4


def assert_same_integers(found: Quantized, weight: torch.Tensor, factor: Factor, groups: list[tuple[int, int]]) -> None:
    q, codes, maxima, dense = plain_gptq(weight.numpy(), factor.perm.numpy(), factor.upper.numpy(), groups)
    np.testing.assert_array_equal(found.codes.numpy(), codes)
    np.testing.assert_array_equal(found.scale_max.numpy(), maxima)
    np.testing.assert_array_equal(found.q.numpy(), q)
    np.testing.assert_array_equal(found.dense[found.perm].numpy(), dense)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.NAME)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("k", [96, 288])
def test_integers_equal_a_plain_implementation(mixture: str, k: int, rounding: Rounding) -> None:
    weight, h = correlated(k, k, 64)
    wanted = parameter_set(mixture)
    factor = factorize(h, 0.12, "test")
    found = quantize(weight, factor, wanted.layout(k), rounding)
    assert [(group.bits, group.rows) for group in found.layout.groups] == plain_layout(wanted, k)
    assert_same_integers(found, weight, factor, plain_layout(wanted, k))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.NAME)
@pytest.mark.parametrize("scale", [1e-4, 1e-6, 8.0])
def test_integers_equal_for_extreme_scales(scale: float, rounding: Rounding) -> None:
    """1e-4 gives fp16-subnormal maxima; 1e-6 gives scales that underflow to zero."""
    weight, h = correlated(3, 128, 32, scale)
    factor = factorize(h, 0.12, "test")
    wanted = parameter_set("10%x5b/g32 + 90%x4b/g32")
    found = quantize(weight, factor, wanted.layout(128), rounding)
    assert_same_integers(found, weight, factor, plain_layout(wanted, 128))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.NAME)
def test_zero_columns_and_dead_features(rounding: Rounding) -> None:
    weight, h = correlated(4, 128, 64)
    weight[:, 5] = 0
    weight[32:64] = 0
    h[:, 96:] = 0
    h[96:] = 0
    factor = factorize(h, 0.12, "test")
    wanted = parameter_set("100%x3b/g32")
    found = quantize(weight, factor, wanted.layout(128), rounding)
    assert_same_integers(found, weight, factor, plain_layout(wanted, 128))
    assert found.dense[:, 5].abs().max() == 0


def test_perm_and_factor_equal_a_plain_implementation() -> None:
    _, h = correlated(5, 160, 32)
    perm, upper = plain_factor(h.numpy())
    found = factorize(h, 0.12, "test")
    np.testing.assert_array_equal(found.perm.numpy(), perm)
    np.testing.assert_allclose(found.upper.numpy(), upper, rtol=1e-3, atol=1e-5 * np.abs(upper).max())


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.NAME)
def test_identity_hessian_means_rounding(rounding: Rounding) -> None:
    weight, _ = correlated(6, 192, 64)
    layout = parameter_set("10%x4b/g128 + 90%x3b/g128").layout(192)
    factor = factorize(torch.eye(192), 0.12, "test")
    gptq, nearest = quantize(weight, factor, layout, rounding), round_to_nearest(weight, factor.perm, layout, rounding)
    assert torch.equal(gptq.q, nearest.q)
    assert torch.equal(gptq.dense, nearest.dense)


@pytest.mark.parametrize("mixture", ["100%x2b/g64", "100%x3b/g64", "100%x4b/g128"])
def test_feedback_beats_rounding_on_correlated_inputs(mixture: str) -> None:
    weight, h = correlated(7, 256, 64)
    layout, factor = parameter_set(mixture).layout(256), factorize(h, 0.12, "test")

    def cost(found: Quantized) -> float:
        off = found.dense - weight
        return float((off * (h @ off)).sum())

    fed_back = cost(quantize(weight, factor, layout, ROUNDINGS[-1]))
    assert fed_back < 0.6 * cost(round_to_nearest(weight, factor.perm, layout, ROUNDINGS[-1]))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(MIXTURES), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_dense_is_what_a_reader_computes(mixture: str, k_blocks: int, n_blocks: int, seed: int) -> None:
    k, n = 32 * k_blocks, 32 * n_blocks
    weight, h = correlated(seed, k, n)
    found = quantize(weight, factorize(h, 0.12, "test"), parameter_set(mixture).layout(k), ROUNDINGS[-1])
    assert isinstance(found.layout, Layout)
    assert torch.equal(dequantize(found.encode()).float(), found.dense)
