"""Matrices of this backend: EXL2 ones in tiles, multiplied as they are packed; the others are the reference's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor
from polybit.kernels import reference
from polybit.kernels.cpu import layout
from polybit.kernels.cpu.activations import gated_activate
from polybit.kernels.cpu.arrays import floats
from polybit.kernels.cpu.layout import TiledMatrix
from polybit.kernels.cpu.norms import rms_norm
from polybit.kernels.cpu.products import multiply, tile_functions
from polybit.kernels.cpu.threads import follow_torch
from polybit.kernels.protocol import Matrix
from polybit.kernels.reference.matrices import DenseMatrix
from polybit.spec import Activation


def prepare_exl2(
    tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    matrix = layout.prepare(tensor.to(device), prescale, dtype)
    return DenseMatrix(layout.dequantize(matrix).T.contiguous()) if unpacked else matrix


def join(matrices: Sequence[Matrix]) -> Matrix | None:
    tiled = [matrix for matrix in matrices if isinstance(matrix, TiledMatrix)]
    return layout.join(tiled) if len(tiled) == len(matrices) else None


def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
    if not isinstance(matrix, TiledMatrix):
        return reference.matmul(x, matrix, residual)
    follow_torch()
    out = torch.empty(x.shape[0], matrix.out_features)
    added = np.empty((0, matrix.out_features), np.float32) if residual is None else floats(residual)
    multiply(  # type: ignore[call-arg]
        floats(x), *matrix.arrays, added, tile_functions(), out.numpy()
    )
    return out.to(x.dtype if residual is None else residual.dtype)


def norm_matmul(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Matrix) -> Tensor:
    return matmul(rms_norm(x, weight, eps, offset).to(weight.dtype), matrix)


def gated_matmul(
    gate: Tensor, up: Tensor, activation: Activation, matrix: Matrix, residual: Tensor | None = None
) -> Tensor:
    return matmul(gated_activate(gate, up, activation), matrix, residual)


def dequantize(matrix: Matrix) -> Tensor:
    return layout.dequantize(matrix) if isinstance(matrix, TiledMatrix) else reference.dequantize(matrix)
