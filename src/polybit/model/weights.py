"""A folder's tensors as the parts of a model see them: matrices prepared for a backend, vectors on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polybit import spec
from polybit.format import exl2, gptq
from polybit.format.checkpoint import Checkpoint
from polybit.format.dense import read_dense
from polybit.kernels.protocol import Backend, Matrix
from polybit.modules.norm import RmsNorm
from polybit.modules.weights import JointFn, NormFn, Weights, one_by_one


@dataclass(frozen=True)
class Linear:
    """y = x W + bias, cut to the true number of out features."""

    matrix: Matrix
    bias: Tensor | None
    out_features: int
    backend: Backend

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None and self.is_plain:
            return self.backend.matmul(x, self.matrix, residual)
        return self.finish(self.backend.matmul(x, self.matrix), residual)

    @property
    def is_plain(self) -> bool:
        """Whether the product of the matrix is all."""
        return self.bias is None and self.out_features == self.matrix.out_features

    def finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """What is left to do after the product y [T, N with padding]."""
        if self.bias is not None:
            y = y + self.bias
        y = y[:, : self.out_features]
        return y if residual is None else residual + y


@dataclass(frozen=True)
class GatedLinear:
    """y = act(gate) * up W + bias"""

    linear: Linear
    activation: spec.Activation

    def __call__(self, gate: Tensor, up: Tensor, residual: Tensor | None = None) -> Tensor:
        linear, backend = self.linear, self.linear.backend
        if linear.is_plain:
            return backend.gated_matmul(gate, up, self.activation, linear.matrix, residual)
        return linear.finish(backend.gated_matmul(gate, up, self.activation, linear.matrix), residual)


@dataclass(frozen=True)
class JointLinear:
    """Several linears of one input, which is first normed, as one product."""

    whole: Linear
    norm: NormFn | None
    dtype: torch.dtype
    widths: tuple[int, ...]  # with the padding of each matrix
    out_features: tuple[int, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = torch.split(self._product(x), list(self.widths), dim=1)
        return tuple(part[:, :width] for part, width in zip(parts, self.out_features, strict=True))

    def _product(self, x: Tensor) -> Tensor:
        whole, norm = self.whole, self.norm
        if isinstance(norm, RmsNorm):
            y = whole.backend.norm_matmul(x, norm.weight, norm.eps, norm.offset, whole.matrix)
            return whole.finish(y, None)
        return whole((x if norm is None else norm(x)).to(self.dtype))


class ModelWeights(Weights, Protocol):
    """What a whole model needs beside the weights of its blocks."""

    def linear(self, node: spec.Linear) -> Linear: ...

    def embedding(self, node: spec.Embedding) -> Tensor:
        """[rows, width] of any float type."""

    def head(self, node: spec.Head, tied_to: Tensor | None) -> Linear:
        """The output matrix; `tied_to` is the embedding [V, E] where there is no matrix of its own."""


@dataclass(frozen=True)
class FolderWeights:
    """Weights of a checkpoint, whichever of EXL2, GPTQ and plain tensors it holds."""

    checkpoint: Checkpoint
    backend: Backend
    device: torch.device
    dtype: torch.dtype
    unpacked: bool
    gptq_zero_offset: int = 1

    def linear(self, node: spec.Linear) -> Linear:
        matrix, bias = self._matrix(node)
        if bias is not None:
            bias = bias.to(self.device, self.dtype) * node.prescale
        return Linear(matrix, bias, node.out_features, self.backend)

    def joint(self, nodes: Sequence[spec.Linear], norm: NormFn | None) -> JointFn:
        return joined([self.linear(node) for node in nodes], norm, self.backend, self.dtype)

    def gated(self, node: spec.Linear, activation: spec.Activation) -> GatedLinear:
        return GatedLinear(self.linear(node), activation)

    def vector(self, name: str) -> Tensor:
        return self.checkpoint.tensor(name).to(self.device, self.dtype)

    def embedding(self, node: spec.Embedding) -> Tensor:
        """[rows, width] as stored."""
        return self.checkpoint.tensor(f"{node.key}.weight").to(self.device)

    def head(self, node: spec.Head, tied_to: Tensor | None) -> Linear:
        """The output matrix; `tied_to` is the embedding [V, E] where the checkpoint has no matrix of its own."""
        if tied_to is None and not (node.normalise_rows and self.checkpoint.kind(node.linear.key) == "dense"):
            return self.linear(node.linear)
        weight = read_dense(self.checkpoint, node.linear)[0] if tied_to is None else tied_to
        if node.normalise_rows:
            weight = F.normalize(weight.float(), dim=-1)
        return Linear(self._dense(weight, node.linear.prescale), None, node.linear.out_features, self.backend)

    def _matrix(self, node: spec.Linear) -> tuple[Matrix, Tensor | None]:
        backend, prepared_for = self.backend, (node.prescale, self.device, self.dtype, self.unpacked)
        match self.checkpoint.kind(node.key):
            case "exl2":
                packed = exl2.read(self.checkpoint, node.key, node)
                return backend.prepare_exl2(packed, *prepared_for), packed.bias
            case "gptq":
                grouped = gptq.read(self.checkpoint, node.key, node, self.gptq_zero_offset)
                return backend.prepare_gptq(grouped, *prepared_for), grouped.bias
            case _:
                weight, bias = read_dense(self.checkpoint, node)
                return self._dense(weight, node.prescale), bias

    def _dense(self, weight: Tensor, prescale: float) -> Matrix:
        weight = weight.to(self.device, self.dtype)
        scaled = weight if prescale == 1.0 else weight * prescale
        return self.backend.prepare_dense(scaled, self.device, self.dtype)


def joined(linears: Sequence[Linear], norm: NormFn | None, backend: Backend, dtype: torch.dtype) -> JointFn:
    """Linears of one input as one product, where the backend gains by it."""
    alike = len({linear.bias is None for linear in linears}) == 1
    matrix = backend.join([linear.matrix for linear in linears]) if alike else None
    if matrix is None:
        return one_by_one(linears, norm, dtype)
    return _joined(matrix, linears, norm, dtype)


def _joined(matrix: Matrix, linears: Sequence[Linear], norm: NormFn | None, dtype: torch.dtype) -> JointLinear:
    widths = tuple(linear.matrix.out_features for linear in linears)
    biases = [F.pad(linear.bias, (0, width - len(linear.bias))) for linear, width in zip(linears, widths, strict=True)
              if linear.bias is not None]  # fmt: skip
    whole = Linear(matrix, torch.cat(biases) if biases else None, sum(widths), linears[0].backend)
    return JointLinear(whole, norm, dtype, widths, tuple(linear.out_features for linear in linears))
