"""Products together with what comes before them, one after the other: faster backends do both in one go."""

from torch import Tensor

from polybit.kernels.protocol import Matrix
from polybit.kernels.reference.activations import gated_activate
from polybit.kernels.reference.matrices import matmul
from polybit.kernels.reference.norms import rms_norm
from polybit.spec import Activation


def norm_matmul(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Matrix) -> Tensor:
    return matmul(rms_norm(x, weight, eps, offset).to(weight.dtype), matrix)


def gated_matmul(
    gate: Tensor, up: Tensor, activation: Activation, matrix: Matrix, residual: Tensor | None = None
) -> Tensor:
    return matmul(gated_activate(gate, up, activation), matrix, residual)
