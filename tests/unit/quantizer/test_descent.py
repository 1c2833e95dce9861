"""Fitted scales and coordinate descent, against the cost that both are there to lower."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from polybit.format.exl2 import dequantize, group_scales
from polybit.kernels.reference import rounding as reference
from polybit.kernels.rounding import choose_rounding
from polybit.quantizer.candidates import parameter_set
from polybit.quantizer.descent import descend
from polybit.quantizer.gptq import Quantized, quantize, quantize_fitted
from polybit.quantizer.hessian import Factor, factorize
from polybit.quantizer.runs import runs

ROUNDING = choose_rounding(torch.device("cpu"))
MIXTURES = ["100%x2b/g64", "100%x3b/g32", "10%x5b/g32 + 90%x4b/g32", "20%x8b/g32 + 80%x6b/g32"]
K, N = 192, 64


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor, Factor]:
    """weight [K, N], h [K, K] of inputs that share a few directions, its factor."""
    make = torch.Generator().manual_seed(0)
    mix = torch.randn(K, 8, generator=make) * torch.rand(K, 1, generator=make)
    x = torch.randn(4 * K, 8, generator=make) @ mix.T + 0.3 * torch.randn(4 * K, K, generator=make)
    h = x.T @ x / len(x)
    return (torch.randn(K, N, generator=make) * 0.03).half().float(), h, factorize(h, 0.03, "test")


def fitted(problem: tuple[Tensor, Tensor, Factor], mixture: str) -> Quantized:
    weight, _, factor = problem
    return quantize_fitted(weight, factor, parameter_set(mixture).layout(K), torch.ones(N), ROUNDING)


def cost(found: Quantized, problem: tuple[Tensor, Tensor, Factor]) -> float:
    off = (found.dense - problem[0]).double()
    return float((off * (problem[1].double() @ off)).sum())


@pytest.mark.parametrize("mixture", MIXTURES)
def test_fitted_scales_beat_the_search_over_one_factor(mixture: str, problem: tuple[Tensor, Tensor, Factor]) -> None:
    weight, _, factor = problem
    searched = quantize(weight, factor, parameter_set(mixture).layout(K), ROUNDING)
    assert cost(fitted(problem, mixture), problem) < 0.97 * cost(searched, problem)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_no_sweep_raises_the_cost(mixture: str, problem: tuple[Tensor, Tensor, Factor]) -> None:
    weight, h, _ = problem
    start = fitted(problem, mixture)
    costs = [cost(descend(start, weight, h, sweeps, ROUNDING), problem) for sweeps in range(5)]
    assert costs[0] == pytest.approx(cost(start, problem))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < 0.99 * costs[0]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_what_descent_leaves_is_what_a_reader_computes(mixture: str, problem: tuple[Tensor, Tensor, Factor]) -> None:
    found = descend(fitted(problem, mixture), problem[0], problem[1], 2, ROUNDING)
    assert torch.equal(dequantize(found.encode()).float(), found.dense)


def test_the_same_with_either_implementation(problem: tuple[Tensor, Tensor, Factor]) -> None:
    start = fitted(problem, MIXTURES[2])
    ours, theirs = (descend(start, problem[0], problem[1], 2, rounding) for rounding in (ROUNDING, reference))
    assert torch.equal(ours.q, theirs.q)
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.dense, theirs.dense)


def test_runs_of_groups_only_put_updates_off(problem: tuple[Tensor, Tensor, Factor]) -> None:
    """Three groups and more a run, and a last run of fewer: the same but for the order of sums."""
    weight, h, factor = problem
    layout, ends = parameter_set("20%x8b/g32 + 80%x3b/g32").layout(K), []
    for update_rows in (1, 80):
        rounding = SimpleNamespace(**vars(reference) | {"UPDATE_ROWS": update_rows})
        fitted = quantize_fitted(weight, factor, layout, torch.ones(N), rounding)
        ends.append([fitted, quantize(weight, factor, layout, rounding), descend(fitted, weight, h, 2, rounding)])
    for one_by_one, in_runs in zip(*ends, strict=True):
        assert float((in_runs.q == one_by_one.q).float().mean()) > 0.98
        assert cost(in_runs, problem) == pytest.approx(cost(one_by_one, problem), rel=0.01)


@pytest.mark.parametrize(("update_rows", "lengths"), [(1, [1] * 6), (80, [3, 3]), (128, [4, 2]), (999, [6])])
def test_runs_are_all_groups_in_order(update_rows: int, lengths: list[int]) -> None:
    layout = parameter_set("20%x8b/g32 + 80%x3b/g32").layout(K)
    found = list(runs(layout, update_rows))
    assert [len(run) for run in found] == lengths
    groups = [group for run in found for group in run]
    assert [group.index for group in groups] == list(range(6))
    assert [group.bits for group in groups] == [group.bits for group in layout.groups]
    assert [(group.start, group.stop) for group in groups] == [(32 * i, 32 * i + 32) for i in range(6)]


def test_without_correlations_there_is_nothing_to_feed_back(problem: tuple[Tensor, Tensor, Factor]) -> None:
    """H = I: each weight lies at the level nearest to it under the scale that its column got."""
    weight = problem[0]
    found = quantize_fitted(
        weight, factorize(torch.eye(K), 0.03, "test"), parameter_set("100%x3b/g32").layout(K), torch.ones(N), ROUNDING
    )
    scale = group_scales(found.codes, found.scale_max).float().repeat_interleave(32, 0)
    levels = (weight[found.perm] / scale).round().clamp(-4, 3)
    assert torch.equal(found.dense[found.perm], (levels * scale).half().float())


def test_a_dead_input_is_left_alone(problem: tuple[Tensor, Tensor, Factor]) -> None:
    weight, h, _ = problem
    dead = h.clone()
    dead[:, 7] = dead[7] = 0
    start = quantize_fitted(
        weight, factorize(dead, 0.03, "test"), parameter_set("100%x4b/g32").layout(K), torch.ones(N), ROUNDING
    )
    assert descend(start, weight, dead, 2, ROUNDING).dense.isfinite().all()
