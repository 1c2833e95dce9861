"""Products with what comes before them, one after the other: for backends and shapes without a kernel for both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from polybit.kernels.protocol import Matrix
from polybit.spec import Activation


class MatmulFn(Protocol):
    def __call__(self, x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class InTurn:
    """The ops `norm_matmul` and `gated_matmul` of a backend, made of three others of it."""

    rms_norm: Callable[[Tensor, Tensor, float, float], Tensor]
    gated_activate: Callable[[Tensor, Tensor, Activation], Tensor]
    matmul: MatmulFn

    def norm_matmul(self, x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Matrix) -> Tensor:
        return self.matmul(self.rms_norm(x, weight, eps, offset).to(weight.dtype), matrix)

    def gated_matmul(
        self, gate: Tensor, up: Tensor, activation: Activation, matrix: Matrix, residual: Tensor | None = None
    ) -> Tensor:
        return self.matmul(self.gated_activate(gate, up, activation), matrix, residual)
