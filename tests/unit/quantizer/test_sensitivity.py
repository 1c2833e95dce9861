"""Sensitivities against their meaning: the divergence that a small error in one matrix really causes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.rounding import choose_rounding
from polybit.model.evaluate import divergence, log_probabilities
from polybit.model.source import open_model
from polybit.modules.rope import RopeTables
from polybit.quantizer.method import METHODS
from polybit.quantizer.part import OpenBlock
from polybit.quantizer.passes import Workbench, loss_gradient
from polybit.quantizer.sensitivity import Echo, backward

from .conftest import Make

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 256, (32, 48), generator=torch.Generator().manual_seed(3))
KEYS = ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]


class Whole:
    """A tiny model with its blocks open."""

    def __init__(self, folder: Path) -> None:
        source = open_model(folder)
        ropes = RopeTables(source.spec.max_seq_len, CPU)
        self.bench = Workbench(source, ropes, reference, choose_rounding(CPU), CPU, METHODS["gptq-loss"])
        self.blocks: list[OpenBlock] = [self.bench.open(layer) for layer in range(len(source.spec.blocks))]

    def states(self) -> list[Tensor]:
        """What each block is given, and what the last one makes of it."""
        found = [self.bench.embed(TOKENS)]
        for block in self.blocks:
            found.append(block.advance(found[-1], lambda part, x: part(x)))
        return found

    def log_probabilities(self) -> Tensor:
        norm, head = self.bench.open_head()
        return log_probabilities(head(norm(self.states()[-1].flatten(0, 1))))


@pytest.fixture(scope="module")
def whole(make_model: Make) -> Whole:
    return Whole(make_model(seed=5))


@pytest.fixture(scope="module")
def echoes(whole: Whole) -> dict[str, Echo]:
    with torch.no_grad():
        states, found = whole.states(), dict[str, Echo]()
        gradient = loss_gradient(whole.bench, states[-1], lambda done, total: None)
        for block, x in zip(reversed(whole.blocks), reversed(states[:-1]), strict=True):
            gradient, echo = backward(block, x, gradient)
            found |= echo
    return found


@pytest.mark.parametrize("role", KEYS)
def test_predicted_divergence_is_what_an_error_causes(role: str, whole: Whole, echoes: dict[str, Echo]) -> None:
    key = f"model.layers.0.{role}"
    probe, echo = whole.blocks[0].probes[key], echoes[key]
    off = torch.randn(probe.original.shape, generator=torch.Generator().manual_seed(1)) * 0.02 * probe.original.std()
    columns = echo.sensitivity(TOKENS.numel()).columns
    predicted = float((columns * (off * (echo.hessian() @ off)).sum(0)).sum()) / 2
    with torch.no_grad():
        before = whole.log_probabilities()
        probe.weight = probe.original + off
        caused = float(divergence(before, whole.log_probabilities()).mean())
        probe.weight = probe.original
    assert predicted == pytest.approx(caused, rel=0.4)


def test_every_matrix_is_heard_and_tokens_weigh_one_on_average(whole: Whole, echoes: dict[str, Echo]) -> None:
    assert set(echoes) == {key for block in whole.blocks for key in block.probes}
    for echo in echoes.values():
        tokens = echo.sensitivity(TOKENS.numel()).tokens
        assert tokens.shape == (TOKENS.numel(),)
        assert float(tokens.mean()) == pytest.approx(1, rel=1e-4)


def test_the_hessian_is_that_of_weighted_tokens(whole: Whole, echoes: dict[str, Echo]) -> None:
    """A matrix fed by the norm alone, whose inputs are easily computed again."""
    key = "model.layers.1.mlp.up_proj"
    heard = list[Tensor]()
    with torch.no_grad():
        block, x = whole.blocks[1], whole.states()[1]
        block.probes[key].listener = heard.append
        block.advance(x, lambda part, inputs: part(inputs))
        block.probes[key].listener = None
    inputs, weights = torch.cat(heard), echoes[key].sensitivity(TOKENS.numel()).tokens
    torch.testing.assert_close(
        echoes[key].hessian(), (inputs * weights[:, None]).T @ inputs / len(inputs), rtol=1e-3, atol=1e-4
    )


def test_one_token_cannot_outweigh_all_others(whole: Whole) -> None:
    probe = whole.blocks[0].probes["model.layers.0.self_attn.q_proj"]
    echo, gradient = Echo(probe), torch.ones(200, probe.original.shape[1])
    gradient[0] *= 1000
    echo.add(torch.ones(200, probe.original.shape[0]), gradient)
    tokens = echo.sensitivity(200).tokens
    assert float(tokens[0]) < 0.999 * float(tokens.sum())
    assert float(gradient[0].square().sum() / gradient.square().sum()) > 0.999
