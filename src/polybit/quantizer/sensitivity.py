"""How the model's own loss reacts to errors in a matrix's outputs: its gradient there, layer by layer from the end.

The loss is that of tokens drawn from the model's own predictions, so its mean squared gradient is the Fisher
information: half of it times a squared error is the KL divergence which that error causes. The squared gradient at
token t and column n is taken apart into tokens[t] * columns[n].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.modules.step import whole_rows
from polybit.modules.weights import NormFn
from polybit.quantizer.draw import draw
from polybit.quantizer.job import Job
from polybit.quantizer.part import OpenBlock, chunks, resident
from polybit.quantizer.probe import Probe
from polybit.quantizer.progress import Advance

MAX_TOKEN_WEIGHT = 20.0  # times the mean: few tokens, most often a row's first, would outweigh all others
TOKENS_OF_LOGITS = 256  # at once: logits are wide


@dataclass(frozen=True)
class Sensitivity:
    tokens: Tensor  # [T], mean 1; of the tokens that passed the matrix, in their order
    columns: Tensor  # [N]: summed over the tokens that passed the matrix, over the number of all tokens


class Echo:
    """Gathers one matrix's sensitivity and the Hessian of its weighted inputs, chunk by chunk of a backward pass."""

    def __init__(self, probe: Probe) -> None:
        features, width = probe.original.shape
        self._hessian = torch.zeros(features, features, device=probe.original.device)
        self._columns = torch.zeros(width, device=probe.original.device)
        self._energies = list[Tensor]()

    def add(self, x: Tensor, gradient: Tensor) -> None:
        """x [T, K], gradient [T, N] of the loss at the outputs."""
        squares = gradient.square()
        energy = squares.sum(1)
        kept = (MAX_TOKEN_WEIGHT * energy.mean() / energy.clamp_min(1e-38)).clamp_max(1.0)
        self._energies.append(energy * kept)
        self._columns += kept @ squares
        self._hessian.addmm_((x * (energy * kept)[:, None]).T, x)

    def sensitivity(self, num_tokens: int) -> Sensitivity:
        energy = torch.cat(self._energies) if self._energies else self._columns[:0]
        return Sensitivity(energy / energy.mean().clamp_min(1e-38), self._columns / num_tokens)

    def hessian(self) -> Tensor:
        """[K, K]: the mean over tokens of weight times x x^T; the identity where no gradient came. Uses its sum up."""
        total = sum(float(energy.sum()) for energy in self._energies)
        return self._hessian.div_(total) if total > 0 else torch.eye(len(self._hessian), device=self._hessian.device)


def head_gradient(x: Tensor, norm: NormFn, head: Probe, softcap: float | None, advance: Advance) -> Tensor:
    """x [R, L, E], the last layer's outputs -> the gradient there of the loss summed over all tokens."""
    generator, out = torch.Generator().manual_seed(0), torch.empty_like(x)
    portions, results = (torch.split(tensor.flatten(0, 1), TOKENS_OF_LOGITS) for tensor in (x, out))
    for i, (rows, result) in enumerate(zip(portions, results, strict=True)):
        with torch.enable_grad():
            states = rows.to(head.original.device, copy=True).requires_grad_()
            normed = norm(states)
        arriving = _logits_gradient(normed.detach(), head, softcap, generator)
        result.copy_(torch.autograd.grad(normed, states, arriving)[0])
        advance(i + 1, len(portions))
    return out


def _logits_gradient(normed: Tensor, head: Probe, softcap: float | None, generator: torch.Generator) -> Tensor:
    """[T, E]: softmax minus a token drawn from it, taken back through the head."""
    logits = head(normed)
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    gradient = capped.softmax(-1)
    drawn = draw(gradient, generator)[:, None]
    gradient.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=gradient.dtype))
    if softcap is not None:
        gradient *= 1 - (capped / softcap).square()
    return gradient @ head.weight.T * head.node.prescale


def backward(block: OpenBlock, x: Tensor, gradient: Tensor) -> tuple[Tensor, dict[str, Echo]]:
    """x [R, L, E] the block's inputs, gradient [R, L, E] at its outputs -> the gradient at x, echoes by key."""
    x, gradient = (resident(states, block.device) for states in (x, gradient))
    echoes, out = {key: Echo(probe) for key, probe in block.probes.items()}, torch.empty_like(x)
    for key, probe in block.probes.items():
        probe.gradient_listener = echoes[key].add
    for rows, arriving, result in zip(chunks(x), chunks(gradient), chunks(out), strict=True):
        with torch.enable_grad():
            states = rows.flatten(0, 1).to(block.device, copy=True).requires_grad_()
            left = block.layer(states, *whole_rows(rows.shape[0], rows.shape[1], block.device))
        found = torch.autograd.grad(left, states, arriving.flatten(0, 1).to(block.device))[0]
        result.copy_(found.view_as(rows))
    for probe in block.probes.values():
        probe.gradient_listener = None
    return out, echoes


def keep_sensitivities(job: Job, layer: int, found: Mapping[str, Sensitivity]) -> None:
    tensors = {f"{key}.tokens": each.tokens for key, each in found.items()}
    job.keep_tensors(tensors_name(layer), tensors | {f"{key}.columns": each.columns for key, each in found.items()})


def kept_sensitivities(job: Job, layer: int, device: torch.device) -> dict[str, Sensitivity]:
    """JobError where they are damaged."""
    tensors = {name: tensor.to(device) for name, tensor in job.kept_tensors(tensors_name(layer)).items()}
    keys = {name.rpartition(".")[0] for name in tensors}
    return {key: Sensitivity(tensors[f"{key}.tokens"], tensors[f"{key}.columns"]) for key in keys}


def tensors_name(layer: int) -> str:
    """Where a job keeps them."""
    return f"sensitivity/{layer:05}"
