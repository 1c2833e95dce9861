"""Numba's loops against plain torch, and plain torch against definitions written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polybit.kernels import rounding as choice
from polybit.kernels.reference import rounding as reference
from polybit.quantizer.scales import factors

numba = pytest.importorskip("polybit.kernels.cpu.rounding")

FACTORS = factors(torch.device("cpu"))

BITS = st.sampled_from([2, 3, 4, 5, 6, 8])
ROWS = st.sampled_from([32, 64, 96, 128])
COLUMNS = st.integers(1, 150)  # tiles of 64, whole and broken
SCALE = st.sampled_from([1e-9, 1e-7, 1e-4, 1e-2, 1.0, 100.0])  # from scales of zero to large ones


def group(rows: int, columns: int, scale: float, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=40, deadline=None)
@given(BITS, ROWS, COLUMNS, SCALE, st.integers(0, 99))
def test_numba_rounds_as_torch_does(bits: int, rows: int, columns: int, scale: float, seed: int) -> None:
    w = group(rows, columns, scale, seed)
    upper = (torch.eye(rows) + group(rows, rows, 0.1, seed)).triu()
    step = (w.abs().amax(0) / 2 ** (bits - 1)).half().float()
    found = numba.round_rows(w.clone(), step, upper, bits)
    expected = reference.round_rows(w.clone(), step, upper, bits)
    for name, ours, theirs in zip(("q", "dense", "errors"), found, expected, strict=True):
        assert torch.equal(ours, theirs), name


@settings(max_examples=20, deadline=None)
@given(BITS, ROWS, COLUMNS, st.sampled_from([1e-4, 1e-2, 1.0]), st.integers(0, 99))
def test_factor_errors_are_the_definition(bits: int, rows: int, columns: int, scale: float, seed: int) -> None:
    x = group(rows, columns, scale, seed)
    trial = x.abs().amax(0) / (2 ** (bits - 1) - 0.5) + 1e-12
    steps = (FACTORS[::16, None, None] * trial).double()
    levels = (x / steps).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    expected = (levels * steps - x).abs().pow(3.5).sum((1, 2))
    for rounding in (reference, numba):
        found = rounding.factor_errors(x, trial, FACTORS[::16].contiguous(), bits)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=2e-3)


def test_both_choose_the_same_factor() -> None:
    for seed in range(20):
        x = group(64, 100, 0.05, seed)
        trial = x.abs().amax(0) / 7.5
        ours, theirs = (rounding.factor_errors(x, trial, FACTORS, 4) for rounding in (numba, reference))
        assert int(ours.argmin()) == int(theirs.argmin())


def test_half_precision_is_that_of_torch() -> None:
    """Every exponent from below the subnormals to the top, and ties of both parities."""
    make = torch.Generator().manual_seed(0)
    spread = torch.randn(20_000, generator=make) * torch.exp2(torch.randint(-30, 14, (20_000,), generator=make).float())
    ties = (torch.arange(2048, 4096).repeat(2) + 0.5) * torch.tensor([2.0**-20, 2.0**-5]).repeat_interleave(2048)
    values = torch.cat([spread, ties, torch.tensor([0.0, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 65504.0])])
    found = values.numpy().copy()
    numba._to_half_precision(found)
    np.testing.assert_array_equal(found, values.half().float().numpy())


def test_zero_over_zero_is_the_top_level() -> None:
    for rounding in (reference, numba):
        q, dense, _ = rounding.round_rows(torch.zeros(32, 3), torch.zeros(3), torch.eye(32), 4)
        assert q.unique().tolist() == [15]
        assert dense.abs().max() == 0


def test_numba_serves_the_cpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.choose_rounding(torch.device("cpu")).NAME == "numba"
    monkeypatch.setattr(choice, "_numba_rounding", lambda: None)
    assert choice.choose_rounding(torch.device("cpu")).NAME == "torch"


def scale_table(x: Tensor, bits: int) -> Tensor:
    """Twelve maxima around what the group's largest weight asks for -> [12, 16]."""
    top = x.abs().max() / (2 ** (bits - 1) - 0.5)
    squares = torch.arange(1, 17).square() / 256
    return (torch.linspace(0.4, 1.15, 12)[:, None] * top * squares).half().float()


@settings(max_examples=30, deadline=None)
@given(BITS, ROWS, COLUMNS, st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]), st.integers(0, 99))
def test_scale_costs_are_the_definition(bits: int, rows: int, columns: int, scale: float, seed: int) -> None:
    """All sixteen codes tried in fp64: none of the tried ones is better, and the cost is that of the code chosen."""
    x = group(rows, columns, scale, seed)
    x[:, 0] = 0
    row_weights, column_weights, table = torch.rand(rows) + 0.1, torch.rand(columns) + 0.1, scale_table(x, bits)
    zero = 2 ** (bits - 1)
    scales = table.double()[:, :, None, None]  # [C, 16, 1, 1]
    levels = (x / scales).nan_to_num(0).round().clamp(-zero, zero - 1)
    plain = ((levels * scales - x).square() * row_weights[:, None]).sum(2)  # [C, 16, N]
    for rounding in (reference, numba):
        found = rounding.scale_costs(x[None], row_weights[None], column_weights, table[None], bits, 16)
        costs, codes = (each[0] for each in found)
        chosen = plain.gather(1, codes.long()[:, None])[:, 0]
        torch.testing.assert_close(costs, (chosen * column_weights).sum(1), rtol=1e-3, atol=1e-30)
        first = torch.searchsorted(table, (x.abs().amax(0) / (zero - 0.5)).expand(12, -1).contiguous()).clamp(max=15)
        tried = torch.arange(16)[None, :, None] <= first[:, None]
        best = torch.where(tried, plain, torch.inf).amin(1)
        torch.testing.assert_close(chosen, best, rtol=1e-3, atol=1e-30)


@settings(max_examples=40, deadline=None)
@given(BITS, ROWS, COLUMNS, SCALE, st.integers(0, 99))
def test_numba_descends_as_torch_does(bits: int, rows: int, columns: int, scale: float, seed: int) -> None:
    w = group(rows, columns, scale, seed)
    x = group(2 * rows, rows, 1.0, seed + 1)
    h = x.T @ x / len(x)
    step = (w.abs().amax(0) / 2 ** (bits - 1)).half().float()
    start = (w / 2).half().float()
    found, expected = ([start.clone(), h @ (w - start)] for _ in range(2))
    ours = numba.descend_rows(found[1], found[0], step, h, bits)
    theirs = reference.descend_rows(expected[1], expected[0], step, h, bits)
    assert torch.equal(ours, theirs)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
