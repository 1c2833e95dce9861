"""A quantized model's numbers as tuning sees them: matrices stay as rounded, what is not packed can change.

That is the weights and biases of norms, the biases of matrices, and the scale maximum of each group of rows. As every
scale of a group is a multiple of its maximum, to change that is to multiply the inputs of the group's rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polybit import spec
from polybit.format import exl2
from polybit.format.checkpoint import Checkpoint
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels.protocol import Backend
from polybit.modules.weights import GatedFn, JointFn, NormFn, after_gate, one_by_one
from polybit.quantizer.job import Job
from polybit.quantizer.output import kept_quantized
from polybit.quantizer.probe import in_half

MAXIMA = "q_scale_max"


@dataclass(frozen=True)
class Leaf:
    """One tensor that changes. `value` is changed in place and collects a gradient; of maxima, it is their factors."""

    value: Tensor
    size: Tensor  # of the value's shape: what a step is a share of


class TunableLinear:
    """y = ((x * factors of its groups) W + bias) * prescale."""

    def __init__(self, node: spec.Linear, packed: Exl2Tensor, factors: Tensor, bias: Tensor | None) -> None:
        self.node = node
        self.weight = exl2.dequantize(packed)[:, : node.out_features].float()
        self.group = _group_of_features(packed)
        self.factors = factors  # [G]
        self.bias = bias  # [N]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = (x * self.factors[self.group]) @ self.weight
        if self.bias is not None:
            y = y + self.bias
        if self.node.prescale != 1.0:
            y = y * self.node.prescale
        return y if residual is None else residual + y


@dataclass
class TunableWeights:
    """The `Weights` of a quantized model. A matrix or norm that is built again gets the same leaves again."""

    job: Job  # matrices
    source: Checkpoint  # norms
    offsets: Mapping[str, float]  # by norm weight: what is added to it
    device: torch.device
    backend: Backend
    leaves: dict[str, Leaf] = field(default_factory=dict)  # by name, as in the files
    dtype = torch.float32

    def linear(self, node: spec.Linear) -> TunableLinear:
        packed = kept_quantized(self.job, node.key).to(self.device)
        factors = torch.ones(len(packed.q_scale_max), device=self.device)
        bias = None
        if packed.bias is not None:
            offset = packed.bias[: node.out_features].float()
            bias = self._leaf(f"{node.key}.bias", offset, offset.square().mean().sqrt().expand_as(offset))
        return TunableLinear(node, packed, self._leaf(f"{node.key}.{MAXIMA}", factors, factors.clone()), bias)

    def joint(self, nodes: Sequence[spec.Linear], norm: NormFn | None) -> JointFn:
        return one_by_one([self.linear(node) for node in nodes], norm, self.dtype)

    def gated(self, node: spec.Linear, activation: spec.Activation) -> GatedFn:
        return after_gate(self.linear(node), activation, self.backend)

    def vector(self, name: str) -> Tensor:
        value = in_half(self.source.tensor(name), name).to(self.device).float()
        if name in self.offsets:
            return self._leaf(name, value, (value + self.offsets[name]).abs())
        is_norm_bias = name.removesuffix(".bias") + ".weight" in self.offsets
        return self._leaf(name, value, value.square().mean().sqrt().expand_as(value)) if is_norm_bias else value

    def _leaf(self, name: str, value: Tensor, size: Tensor) -> Tensor:
        if name not in self.leaves:
            self.leaves[name] = Leaf(value.requires_grad_(), size)
        return self.leaves[name].value

    def stored(self) -> dict[str, Tensor]:
        """What the leaves are now, by name, in fp16: norms as the source has them, all else as EXL2 files do."""
        return {name: self._stored(name, leaf.value.detach().cpu()) for name, leaf in self.leaves.items()}

    def _stored(self, name: str, value: Tensor) -> Tensor:
        key, _, part = name.rpartition(".")
        if part == MAXIMA:
            value = kept_quantized(self.job, key).q_scale_max.float() * value
        elif f"{key}.weight" not in self.offsets:  # a matrix's bias
            value = torch.nn.functional.pad(value, (0, -len(value) % exl2.COLUMN_MULTIPLE))
        return in_half(value, name)


def norm_offsets(model: spec.Model) -> dict[str, float]:
    """Of every norm of the model, by the name of its weight."""
    norms = (*(norm for block in model.blocks for norm in spec.block_norms(block)), model.norm)
    return {f"{norm.key}.weight": norm.offset if isinstance(norm, spec.RMSNorm) else 0.0 for norm in norms}


def _group_of_features(packed: Exl2Tensor) -> Tensor:
    """[K]: the group that each input feature's row is in."""
    rows = torch.tensor([group.rows for group in packed.layout.groups], device=packed.q_invperm.device)
    return torch.arange(len(rows), device=rows.device).repeat_interleave(rows)[packed.q_invperm.long()]
