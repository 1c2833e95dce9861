"""Matrices of this backend: packed ones, whose small products read the words, and dense ones, which are torch's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor, Layout
from polybit.format.gptq import GptqTensor
from polybit.kernels.composed import InTurn
from polybit.kernels.protocol import Matrix
from polybit.kernels.reference.matrices import DenseMatrix, column_parts, foreign_matrix
from polybit.kernels.triton import exl2, gptq
from polybit.kernels.triton.activations import gated_activate
from polybit.kernels.triton.exl2 import Exl2Matrix
from polybit.kernels.triton.gptq import GptqMatrix
from polybit.kernels.triton.norms import rms_norm
from polybit.kernels.triton.packed import MAX_ROWS, PackedMatrix


def prepare_exl2(
    tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    return _prepare(exl2.prepare(tensor, prescale, device, dtype), unpacked)


def prepare_gptq(
    tensor: GptqTensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    return _prepare(gptq.prepare(tensor, prescale, device, dtype), unpacked)


def exl2_bytes(layout: Layout, out_features: int, dtype: torch.dtype) -> int:
    return exl2.num_bytes(layout, out_features)


def _prepare(matrix: PackedMatrix, unpacked: bool) -> Matrix:
    return DenseMatrix(matrix.dense(0, matrix.out_features).T.contiguous()) if unpacked else matrix


def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
    y = _product(x, matrix)
    return y if residual is None else residual + y


_in_turn = InTurn(rms_norm, gated_activate, matmul)
norm_matmul, gated_matmul = _in_turn.norm_matmul, _in_turn.gated_matmul


def _product(x: Tensor, matrix: Matrix) -> Tensor:
    match matrix:
        case DenseMatrix(weight=weight):
            return F.linear(x, weight)
        case Exl2Matrix() | GptqMatrix():
            return matrix.multiply(x) if x.shape[0] <= MAX_ROWS else _multiply_dense(x, matrix)
        case _:
            raise foreign_matrix(matrix)


def dequantize(matrix: Matrix) -> Tensor:
    match matrix:
        case DenseMatrix(weight=weight):
            return weight.T
        case Exl2Matrix() | GptqMatrix():
            return matrix.dense(0, matrix.out_features)
        case _:
            raise foreign_matrix(matrix)


def _multiply_dense(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """Products of many rows: some columns at a time are dequantized and go through torch."""
    out = torch.empty(x.shape[0], matrix.out_features, dtype=x.dtype, device=x.device)
    for start, stop in column_parts(matrix.in_features, matrix.out_features):
        torch.mm(x, matrix.dense(start, stop), out=out[:, start:stop])
    return out
