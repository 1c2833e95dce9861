"""Where the parts of a model get their numbers: a folder's tensors, or the quantizer's probes."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from polybit import spec

JointFn = Callable[[Tensor], tuple[Tensor, ...]]  # [T, K] -> [T, N] of each matrix


class LinearFn(Protocol):
    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, K] -> [T, N], added to the residual [T, N] if there is one, and then of its type."""


class Weights(Protocol):
    """Hands out a model's numbers by the names in its spec."""

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""

    def linear(self, node: spec.Linear) -> LinearFn:
        """The matrix with its bias; padding columns are cut off."""

    def joint(self, nodes: Sequence[spec.Linear]) -> JointFn:
        """Matrices that share their input."""

    def vector(self, name: str) -> Tensor:
        """A small unquantized tensor: norm weights, biases, routers."""


def one_by_one(linears: Sequence[LinearFn]) -> JointFn:
    """Matrices that share their input, where nothing is gained by taking them together."""
    return lambda x: tuple(linear(x) for linear in linears)
