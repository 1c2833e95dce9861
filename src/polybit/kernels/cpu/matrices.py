"""Matrices of this backend: EXL2 ones in tiles, multiplied as they are packed; the others are the reference's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor, Layout
from polybit.kernels import reference
from polybit.kernels.composed import InTurn
from polybit.kernels.cpu import layout as tiles
from polybit.kernels.cpu.activations import gated_activate
from polybit.kernels.cpu.arrays import floats
from polybit.kernels.cpu.layout import TiledMatrix
from polybit.kernels.cpu.norms import rms_norm
from polybit.kernels.cpu.products import multiply, passes
from polybit.kernels.cpu.team import team
from polybit.kernels.protocol import Matrix
from polybit.kernels.reference.matrices import DenseMatrix


def prepare_exl2(
    tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    matrix = tiles.prepare(tensor.to(device), prescale, dtype)
    return DenseMatrix(tiles.dequantize(matrix).T.contiguous()) if unpacked else matrix


def exl2_bytes(layout: Layout, out_features: int, dtype: torch.dtype) -> int:
    return tiles.num_bytes(layout, out_features)


def join(matrices: Sequence[Matrix]) -> Matrix | None:
    tiled = [matrix for matrix in matrices if isinstance(matrix, TiledMatrix)]
    return tiles.join(tiled) if len(tiled) == len(matrices) else None


def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
    if not isinstance(matrix, TiledMatrix):
        return reference.matmul(x, matrix, residual)
    out = torch.empty(x.shape[0], matrix.out_features)
    added = np.empty((0, matrix.out_features), np.float32) if residual is None else floats(residual)
    given, through = floats(x), passes(x.shape[0])
    with team.turn:
        board, workers = team.call()
        arrays = *matrix.arrays, added, through.starts, through.functions  # mypy cannot follow them through a star
        multiply(given, *arrays, board, workers, out.numpy())  # type: ignore[arg-type, call-arg]
    return out.to(x.dtype if residual is None else residual.dtype)


_in_turn = InTurn(rms_norm, gated_activate, matmul)
norm_matmul, gated_matmul = _in_turn.norm_matmul, _in_turn.gated_matmul


def dequantize(matrix: Matrix) -> Tensor:
    return tiles.dequantize(matrix) if isinstance(matrix, TiledMatrix) else reference.dequantize(matrix)
