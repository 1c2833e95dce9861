"""Triton's loops of quantization against plain torch: in the interpreter here, on the card with pytest -m gpu."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from kernels.interpreter import mended
from polybit.format.exl2 import group_scales
from polybit.kernels import rounding as choice
from polybit.kernels.reference import rounding as reference
from polybit.kernels.reference.groups import realised_scales
from polybit.quantizer.candidates import parameter_set
from polybit.quantizer.descent import descend
from polybit.quantizer.gptq import Quantized, quantize, quantize_fitted
from polybit.quantizer.hessian import factorize, weigh_rows
from polybit.quantizer.pricing import block_costs
from polybit.quantizer.scales import WINDOWS, factors, fit_scales

triton = pytest.importorskip("polybit.kernels.triton.rounding")

# Bits and rows of a group, columns: tiles whole and broken.
GROUPS = [
    (2, 64, 32),
    (3, 32, 40),
    pytest.param(4, 128, 33, marks=pytest.mark.slow),
    (5, 32, 64),
    (6, 96, 16),
    (8, 32, 1),
]
ALIKE = 0.995  # of the levels: a sum in another order may tip one that lies between two


@pytest.fixture(autouse=True)
def _interpreter(device: torch.device) -> Iterator[None]:
    with mended() if device.type == "cpu" else nullcontext():
        yield


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def steps(w: Tensor, bits: int) -> Tensor:
    """[N], scales that reach most of w [R, N]."""
    return (w.abs().amax(0) / 2 ** (bits - 1)).half().float()


def assert_alike(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert float((found.cpu() == expected).float().mean()) >= ALIKE


@pytest.mark.parametrize(("bits", "rows", "columns"), GROUPS)
def test_rows_are_rounded_as_by_torch(bits: int, rows: int, columns: int, device: torch.device) -> None:
    w = normal(rows, columns, seed=bits, scale=0.02)
    upper = (torch.eye(rows) + normal(rows, rows, seed=1, scale=0.1)).triu()
    upper.diagonal().abs_().clamp_(min=0.5)
    step = steps(w, bits)
    found = triton.round_rows(w.to(device), step.to(device), upper.to(device), bits)
    expected = reference.round_rows(w.clone(), step, upper, bits)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
    assert_alike(found[0], expected[0])
    same = (found[0].cpu() == expected[0]).all(0)  # the columns in which nothing tipped
    assert same.float().mean() >= 0.9
    assert torch.equal(found[1].cpu()[:, same], expected[1][:, same])
    torch.testing.assert_close(found[2].cpu()[:, same], expected[2][:, same], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 100.0])
def test_rows_of_extreme_scales(scale: float, device: torch.device) -> None:
    """Scales that underflow to zero, subnormal ones, and large ones: without feedback there is nothing to tip."""
    w, identity = normal(32, 40, seed=5, scale=scale), torch.eye(32)
    w[:, 3] = 0
    step = steps(w, 4)
    found = triton.round_rows(w.to(device), step.to(device), identity.to(device), 4)
    for ours, theirs in zip(found, reference.round_rows(w.clone(), step, identity, 4), strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize(("bits", "rows", "columns"), GROUPS)
def test_groups_descend_as_by_torch(bits: int, rows: int, columns: int, device: torch.device) -> None:
    w, x = normal(rows, columns, seed=bits, scale=0.02), normal(2 * rows, rows, seed=2)
    h, maximum = x.T @ x / len(x), (w.abs().amax() / 2 ** (bits - 1)).half()
    codes = (normal(columns, seed=3).abs() * 6).clamp(0, 15).to(torch.uint8)
    scale = group_scales(codes, maximum).float()
    q = ((w / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 2 ** (bits - 1)).to(torch.uint8)
    dense = ((q.float() - 2 ** (bits - 1)) * scale).half().float()
    ends = []
    for rounding, on in ((reference, torch.device("cpu")), (triton, device)):
        state = [each.to(on, copy=True) for each in (dense, q, codes)]
        moved = rounding.descend_group((h @ (w - dense)).to(on), *state, maximum.to(on), h.to(on), bits)
        ends.append([each.cpu() for each in (moved, *state)])
        assert torch.equal(ends[-1][0], ends[-1][1] - dense)  # which the rest of the matrix is told
    assert_alike(ends[1][3], ends[0][3])
    assert_alike(ends[1][2], ends[0][2])
    same = (ends[1][2] == ends[0][2]).all(0) & (ends[1][3] == ends[0][3])
    assert same.float().mean() >= 0.9
    assert torch.equal(ends[1][1][:, same], ends[0][1][:, same])
    assert not torch.equal(ends[0][3], codes)


@pytest.mark.parametrize(("bits", "rows", "columns"), GROUPS)
def test_fitted_groups_are_those_of_torch(bits: int, rows: int, columns: int, device: torch.device) -> None:
    """The factor is a part of a larger one, as it is in use."""
    w, row_weights = normal(rows, columns, seed=bits, scale=0.02), normal(rows, seed=1).abs() + 0.1
    column_weights, tried = normal(columns, seed=2).abs() + 0.1, torch.linspace(0.5, 1.15, 3)
    whole = (torch.eye(2 * rows) + normal(2 * rows, 2 * rows, seed=3, scale=0.1)).triu()
    given = [each.to(device) for each in (w, row_weights, column_weights, tried, whole)]
    found = triton.fit_and_round(*given[:4], given[4][rows:, rows:], bits, WINDOWS[bits])
    expected = reference.fit_and_round(w, row_weights, column_weights, tried, whole[rows:, rows:], bits, WINDOWS[bits])
    assert torch.equal(found.scale_max.cpu(), expected.scale_max)
    assert_alike(found.codes, expected.codes)
    assert_alike(found.q, expected.q)
    same = (found.q.cpu() == expected.q).all(0) & (found.codes.cpu() == expected.codes)
    assert same.float().mean() >= 0.9
    assert torch.equal(found.dense.cpu()[:, same], expected.dense[:, same])
    torch.testing.assert_close(found.errors.cpu()[:, same], expected.errors[:, same], rtol=1e-3, atol=1e-5)
    assert torch.equal(given[0].cpu(), w)


@pytest.mark.parametrize(("bits", "rows", "columns"), GROUPS)
def test_scales_cost_what_they_cost_in_torch(bits: int, rows: int, columns: int, device: torch.device) -> None:
    x, row_weights = normal(3, rows, columns, seed=bits, scale=0.02), normal(3, rows, seed=1).abs() + 0.1
    x[:, :, 0], x[2] = 0, 0  # a column without weights, a group without any
    column_weights = normal(columns, seed=2).abs()
    top = x.abs().amax((1, 2)) / (2 ** (bits - 1) - 0.5)
    table = realised_scales((torch.linspace(0.4, 1.15, 5) * top[:, None]).half())
    given = (x, row_weights, column_weights, table)
    costs, codes = triton.scale_costs(*(each.to(device) for each in given), bits, WINDOWS[bits])
    expected_costs, expected_codes = reference.scale_costs(*given, bits, WINDOWS[bits])
    torch.testing.assert_close(costs.cpu(), expected_costs, rtol=1e-4, atol=1e-12)
    assert_alike(codes, expected_codes)


@pytest.mark.parametrize(("bits", "rows", "columns"), GROUPS)
def test_factors_cost_what_they_cost_in_torch(bits: int, rows: int, columns: int, device: torch.device) -> None:
    x = normal(rows, columns, seed=bits, scale=0.02)
    trial, tried = x.abs().amax(0) / (2 ** (bits - 1) - 0.5) + 1e-12, factors(torch.device("cpu"))
    found = triton.factor_errors(*(each.to(device) for each in (x, trial, tried)), bits)
    expected = reference.factor_errors(x, trial, tried, bits)
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-3, atol=0)
    assert int(found.argmin()) == int(expected.argmin())


def problem(k: int, n: int) -> tuple[Tensor, Tensor]:
    """weight [K, N], h [K, K] of inputs that share a few directions."""
    mix = normal(k, 8, seed=1) * normal(k, 1, seed=2).abs()
    x = normal(4 * k, 8, seed=3) @ mix.T + 0.3 * normal(4 * k, k, seed=4)
    return normal(k, n, seed=5, scale=0.03).half().float(), x.T @ x / len(x)


def cost(found: Quantized, weight: Tensor, h: Tensor) -> float:
    off = (found.dense.cpu() - weight).double()
    return float((off * (h.double() @ off)).sum())


@pytest.mark.slow
@pytest.mark.parametrize("mixture", ["100%x2b/g64", "20%x5b/g32 + 80%x3b/g32"])
def test_a_whole_matrix_ends_where_torch_ends(
    mixture: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run of two groups or one, and another."""
    monkeypatch.setattr(triton, "UPDATE_ROWS", 64)
    weight, h = problem(96, 32)
    layout, columns = parameter_set(mixture).layout(96), normal(32, seed=6).abs() + 0.1
    ends = []
    for on, rounding in ((torch.device("cpu"), reference), (device, triton)):
        w, trusted = weight.to(on), h.to(on)
        factor = factorize(trusted, 0.03, "test")
        fitted = quantize_fitted(w, factor, layout, columns.to(on), rounding)
        ends.append([fitted, descend(fitted, w, trusted, 1, rounding)])
    for expected, found in zip(*ends, strict=True):
        assert cost(found, weight, h) == pytest.approx(cost(expected, weight, h), rel=0.02)
        assert float((found.q.cpu() == expected.q).float().mean()) > 0.97
    assert cost(ends[1][1], weight, h) < cost(ends[1][0], weight, h)


def test_a_search_over_one_factor_ends_where_torch_ends(device: torch.device) -> None:
    weight, h = problem(32, 32)
    layout, ends = parameter_set("100%x4b/g32").layout(32), []
    for on, rounding in ((torch.device("cpu"), reference), (device, triton)):
        ends.append(quantize(weight.to(on), factorize(h.to(on), 0.12, "test"), layout, rounding))
    assert torch.equal(ends[1].scale_max.cpu(), ends[0].scale_max)
    assert_alike(ends[1].q, ends[0].q)


def test_blocks_cost_what_they_cost_in_torch(device: torch.device) -> None:
    weight, h = problem(96, 8)  # groups of 64 do not divide it
    columns = normal(8, seed=6).abs() + 0.1
    found, expected = (
        block_costs(weight.to(on), weigh_rows(h.to(on), 0.03, "test"), columns.to(on), rounding)
        for on, rounding in ((device, triton), (torch.device("cpu"), reference))
    )
    assert torch.from_numpy(found).allclose(torch.from_numpy(expected), rtol=1e-3)


def test_a_group_costs_the_same_alone_and_among_others(device: torch.device) -> None:
    x, weights, columns = normal(4, 32, 40, seed=7), normal(4, 32, seed=8).abs(), torch.ones(40)
    given = [each.to(device) for each in (x, weights, columns)]
    together = fit_scales(*given, 3, triton, 4)
    alone = fit_scales(given[0][2:3], given[1][2:3], given[2], 3, triton, 4)
    assert torch.equal(alone.cost[0], together.cost[2])
    assert torch.equal(alone.codes[0], together.codes[2])
    assert torch.equal(alone.scale_max[0], together.scale_max[2])


@pytest.mark.gpu
def test_triton_serves_the_gpu() -> None:
    assert choice.choose_rounding(torch.device("cuda")).NAME == "triton"
