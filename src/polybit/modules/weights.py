"""Where the parts of a model get their numbers: a folder's tensors, or the quantizer's probes."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from polybit import spec

LinearFn = Callable[[Tensor], Tensor]  # [T, K] -> [T, N]


class Weights(Protocol):
    """Hands out a model's numbers by the names in its spec."""

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""

    def linear(self, node: spec.Linear) -> LinearFn:
        """The matrix with its bias; padding columns are cut off."""

    def vector(self, name: str) -> Tensor:
        """A small unquantized tensor: norm weights, biases, routers."""
