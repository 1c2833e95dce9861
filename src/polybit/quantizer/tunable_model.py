"""The quantized model of a job while it is tuned: what changes as one vector, and the divergence's gradient by it.

A model that fits into memory stays there; of a larger one, each layer is opened anew for every pass.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from polybit.model.machine import free_bytes
from polybit.modules.block import Layer, build_block
from polybit.modules.norm import build_norm
from polybit.modules.step import whole_rows
from polybit.modules.weights import LinearFn, NormFn
from polybit.quantizer.job import Job
from polybit.quantizer.passes import Workbench
from polybit.quantizer.tunable import TunableWeights, norm_offsets

TOKENS_OF_LOGITS = 256  # at once: logits are wide
ROOM = 3  # times the matrices' bytes in fp32: what a model in memory takes, with what a row leaves behind in it


class TunableModel:
    """The quantized model of a job, and how its predictions diverge from the source's."""

    def __init__(self, bench: Workbench, job: Job) -> None:
        model, checkpoint = bench.source.spec, bench.source.checkpoint
        offsets = norm_offsets(model)
        self.weights = TunableWeights(job, checkpoint, offsets, bench.device, bench.backend)
        self._bench = bench
        matrices = (*model.linears, model.head.linear)
        num_bytes = 4 * sum(linear.in_features * linear.out_features for linear in matrices)
        self._stays = ROOM * num_bytes < free_bytes(bench.device)
        self._open = dict[int, Layer]()
        for layer in range(len(model.blocks)):
            self._layer(layer)
        self._norm = build_norm(model.norm, self.weights, bench.backend)
        self._head = self.weights.linear(model.head.linear)
        self._wanted_norm, self._wanted_head = bench.open_head()

    # ---- all numbers that change, one after another

    @cached_property
    def sizes(self) -> Tensor:
        """[P]"""
        return torch.cat([leaf.size.flatten() for leaf in self.weights.leaves.values()]).cpu()

    @property
    def values(self) -> Tensor:
        """[P]"""
        return torch.cat([leaf.value.detach().flatten() for leaf in self.weights.leaves.values()]).cpu()

    def load(self, values: Tensor) -> None:
        """values [P]"""
        leaves = [leaf.value.detach() for leaf in self.weights.leaves.values()]
        for leaf, value in zip(leaves, values.split([leaf.numel() for leaf in leaves]), strict=True):
            leaf.copy_(value.view_as(leaf))

    # ---- one row

    def gradient(self, x: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
        """x [L, E] before the first layer, wanted [L, E] after the source's last -> mean divergence, its gradient [P].

        In nats; the gradient is of shares of the values' sizes.
        """
        device = self._bench.device
        passes = list[tuple[Tensor, Tensor | None]]()  # input of each layer, and its output where that is kept
        for layer in range(len(self._bench.source.spec.blocks)):
            x = x.to(device).requires_grad_()
            output = self._run(layer, x)
            passes.append((x, output if self._stays else None))
            x = output.detach()
        divergence, arriving = self._diverge(x, wanted.to(device))
        for layer in reversed(range(len(passes))):
            x, kept = passes.pop()
            (self._run(layer, x) if kept is None else kept).backward(arriving)
            assert x.grad is not None
            arriving = x.grad
        return divergence, self._take_gradient()

    def _run(self, layer: int, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._layer(layer)(x, *whole_rows(1, len(x), x.device))

    def _layer(self, layer: int) -> Layer:
        if layer in self._open:
            return self._open[layer]
        bench = self._bench
        found = build_block(bench.source.spec.blocks[layer], 0, self.weights, bench.backend, bench.ropes)
        if self._stays:
            self._open[layer] = found
        return found

    def _diverge(self, x: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
        """x and wanted [L, E], last states -> the mean divergence, its gradient at x. The norm's and head's is kept."""
        total, arriving = 0.0, torch.empty_like(x)
        portions = (torch.split(tensor, TOKENS_OF_LOGITS) for tensor in (x, wanted, arriving))
        for states, wanted_states, result in zip(*portions, strict=True):
            wanted_log = self._predict(wanted_states, self._wanted_norm, self._wanted_head)
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                found_log = self._predict(states, self._norm, self._head)
                divergence = F.kl_div(found_log, wanted_log, reduction="sum", log_target=True) / len(x)
            divergence.backward()
            assert states.grad is not None
            result.copy_(states.grad)
            total += float(divergence)
        return total, arriving

    def _predict(self, x: Tensor, norm: NormFn, head: LinearFn) -> Tensor:
        """x [T, E] -> log probabilities [T, V]."""
        logits, softcap = head(norm(x)), self._bench.source.spec.head.softcap
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(-1)

    def _take_gradient(self) -> Tensor:
        """[P], by shares of sizes, and none is left behind."""
        leaves = [leaf.value for leaf in self.weights.leaves.values()]
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return torch.cat([gradient.flatten() for gradient in found]).cpu() * self.sizes
