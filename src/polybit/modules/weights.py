"""Where the parts of a model get their numbers: a folder's tensors, or the quantizer's probes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polybit import spec
from polybit.kernels.protocol import Backend

NormFn = Callable[[Tensor], Tensor]  # [..., W] -> [..., W]
JointFn = Callable[[Tensor], tuple[Tensor, ...]]  # [T, K] -> [T, N] of each matrix


class LinearFn(Protocol):
    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, K] -> [T, N], added to the residual [T, N] if there is one, and then of its type."""


class GatedFn(Protocol):
    def __call__(self, gate: Tensor, up: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product of act(gate) * up, both [T, K], added to the residual [T, N] if there is one."""


class Weights(Protocol):
    """Hands out a model's numbers by the names in its spec."""

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""

    def linear(self, node: spec.Linear) -> LinearFn:
        """The matrix with its bias; padding columns are cut off."""

    def joint(self, nodes: Sequence[spec.Linear], norm: NormFn | None) -> JointFn:
        """Matrices that share their input, which is first normed and brought to `dtype`."""

    def gated(self, node: spec.Linear, activation: spec.Activation) -> GatedFn:
        """A matrix whose input is gated."""

    def vector(self, name: str) -> Tensor:
        """A small unquantized tensor: norm weights, biases, routers."""


@dataclass(frozen=True)
class OneByOne:
    """Matrices that share their input, where nothing is gained by taking them together."""

    linears: tuple[LinearFn, ...]
    norm: NormFn | None
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        h = (x if self.norm is None else self.norm(x)).to(self.dtype)
        return tuple(linear(h) for linear in self.linears)


def one_by_one(linears: Sequence[LinearFn], norm: NormFn | None, dtype: torch.dtype) -> JointFn:
    return OneByOne(tuple(linears), norm, dtype)


def after_gate(linear: LinearFn, activation: spec.Activation, backend: Backend) -> GatedFn:
    """A matrix whose input is gated, where nothing is gained by doing both at once."""
    return lambda gate, up, residual=None: linear(backend.gated_activate(gate, up, activation), residual)
