"""Inputs that have drifted off the unquantized model's, and matrices that make up for a part of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.rounding import choose_rounding
from polybit.model.source import open_model
from polybit.modules.rope import RopeTables
from polybit.quantizer.candidates import HEAD_SETS
from polybit.quantizer.job import Job
from polybit.quantizer.method import METHODS
from polybit.quantizer.part import Part
from polybit.quantizer.passes import Workbench, quantize_layer
from polybit.quantizer.sensitivity import Sensitivity
from polybit.quantizer.slots import Input

from .conftest import Make

CPU = torch.device("cpu")
METHOD = METHODS["gptq-loss"]


@pytest.fixture(scope="module")
def bench(make_model: Make) -> Workbench:
    source = open_model(make_model(seed=5))
    ropes = RopeTables(source.spec.max_seq_len, CPU)
    return Workbench(source, ropes, reference, choose_rounding(CPU), CPU, METHOD)


def inputs_of(part: Part, heard: Input, x: Tensor) -> Tensor:
    found = list[Tensor]()
    part.probes[heard.heard[0].key].listener = lambda inputs: found.append(inputs.clone())
    part(x)
    part.probes[heard.heard[0].key].listener = None
    return torch.cat(found)


@torch.no_grad()
def test_drift_is_what_quantized_matrices_before_do_to_the_inputs(bench: Workbench) -> None:
    generator = torch.Generator().manual_seed(2)
    part = bench.open(0).mlp
    (shared, down), x = part.slot.inputs, torch.randn(5, 40, 64, generator=generator)
    true = x + 0.1 * torch.randn(x.shape, generator=generator)
    unquantized = inputs_of(part, down, true)
    for linear in shared.linears:
        probe = part.probes[linear.key]
        probe.weight = probe.original + 0.01 * torch.randn(probe.original.shape, generator=generator)
    before = {key: probe.weight for key, probe in part.probes.items()}
    key, weights = down.linears[0].key, torch.rand(5 * 40, generator=generator)
    (hessian,), (drift,) = (found.values() for found in part.hear(x, true, down, {key: weights}))
    quantized = inputs_of(part, down, x)
    weighted = quantized * weights[:, None]
    torch.testing.assert_close(hessian, weighted.T @ quantized / 5)
    torch.testing.assert_close(drift, weighted.T @ (unquantized - quantized) / 5)
    assert all(part.probes[key].weight is weight for key, weight in before.items())


@torch.no_grad()
def test_a_matrix_makes_up_for_a_share_of_its_inputs_errors(bench: Workbench) -> None:
    """At 8 bits rounding hides nothing: outputs come nearer to the true ones by that share, on text not seen too."""
    generator = torch.Generator().manual_seed(0)
    weight, mixed = torch.randn(64, 32, generator=generator), torch.randn(64, 64, generator=generator) / 8
    true = [torch.randn(tokens, 64, generator=generator) @ mixed for tokens in (4096, 512)]
    off = 0.3 * torch.randn(64, 64, generator=generator) / 8
    x, unseen = (inputs + inputs @ off for inputs in true)
    hessian, drift = (x.T @ y / len(x) for y in (x, true[0] - x))
    layout, columns = HEAD_SETS[8].layout(64), torch.ones(32)

    def error(correction: float) -> float:
        method = replace(METHOD, correction=correction, shrinkage=0.0, damping=1e-4)
        found = replace(bench, method=method).round(weight, hessian, layout, columns, "x", {"x": drift})
        return float((unseen @ found.dense - true[1] @ weight).norm())

    assert error(0.2) == pytest.approx(0.8 * error(0.0), rel=0.02)
    assert error(1.0) < 0.1 * error(0.0)


@torch.no_grad()
def test_without_drift_nothing_moves(bench: Workbench) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 32, generator=generator) for rows in (32, 500))
    layout, columns = HEAD_SETS[8].layout(32), torch.ones(32)
    plain, corrected = (
        bench.round(weight, x.T @ x, layout, columns, "x", drifts) for drifts in (None, {"x": torch.zeros(32, 32)})
    )
    assert torch.equal(plain.dense, corrected.dense)


@torch.no_grad()
def test_a_quantized_layer_comes_nearer_to_what_the_unquantized_one_makes(bench: Workbench, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    true = torch.randn(8, 64, 64, generator=generator)
    off = torch.eye(64) + 0.3 * torch.randn(64, 64, generator=generator) / 8
    states, block = torch.stack([true @ off, true]), bench.open(0)
    unquantized = block.advance(true, lambda part, x: part(x))
    alike = {
        key: Sensitivity(torch.ones(8 * 64), torch.ones(probe.original.shape[1])) for key, probe in block.probes.items()
    }
    finest = [max(part.slot.options, key=part.slot.num_bits) for part in block.parts]
    distances = list[float]()
    for correction in (0.0, 0.2, 0.8):
        method = replace(METHOD, correction=correction, shrinkage=0.0)
        job = Job(tmp_path / f"{correction}", {})
        found, _ = quantize_layer(replace(bench, method=method), job, 0, states, finest, alike)
        assert torch.equal(found[1], unquantized)
        distances.append(float((found[0] - found[1]).norm()))
    assert distances[1] < 0.97 * distances[0]
    assert distances[2] < 0.9 * distances[0]
