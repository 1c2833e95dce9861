"""Matrices of this backend: EXL2 ones as streams where activations are of half precision; the others are Triton's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor
from polybit.kernels import triton
from polybit.kernels.cuda import streamed
from polybit.kernels.cuda.decode import MAX_ROWS, gated_multiply, multiply, norm_multiply
from polybit.kernels.cuda.stream import TILE_COLUMNS
from polybit.kernels.cuda.streamed import Streamed
from polybit.kernels.protocol import Matrix
from polybit.kernels.reference.matrices import column_parts
from polybit.spec import Activation

# Times as many weights as others dequantize at once: theirs take seven bytes each on the way, these two, or four.
WORK_TIMES = {torch.float16: 3, torch.bfloat16: 1}
HALF = (torch.float16, torch.bfloat16)  # the kernels round activations to 11 bits


def prepare_exl2(
    tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    if unpacked or dtype not in HALF:
        return triton.prepare_exl2(tensor, prescale, device, dtype, unpacked)
    return streamed.prepare(tensor, prescale, device, dtype)


def join(matrices: Sequence[Matrix]) -> Matrix | None:
    streams = [matrix for matrix in matrices if isinstance(matrix, Streamed)]
    return streamed.join(streams) if len(streams) == len(matrices) else None


def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
    if not isinstance(matrix, Streamed):
        return triton.matmul(x, matrix, residual)
    if x.shape[0] <= MAX_ROWS:
        return multiply(x, matrix, residual)
    y = _multiply_dense(x, matrix)
    return y if residual is None else residual + y


def norm_matmul(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Matrix) -> Tensor:
    if isinstance(matrix, Streamed) and x.shape[0] <= MAX_ROWS and weight.dim() == 1:
        return norm_multiply(x, weight, eps, offset, matrix)
    return matmul(triton.rms_norm(x, weight, eps, offset).to(weight.dtype), matrix)


def gated_matmul(
    gate: Tensor, up: Tensor, activation: Activation, matrix: Matrix, residual: Tensor | None = None
) -> Tensor:
    if isinstance(matrix, Streamed) and gate.shape[0] <= MAX_ROWS:
        return gated_multiply(gate, up, activation, matrix, residual)
    return matmul(triton.gated_activate(gate, up, activation), matrix, residual)


def _multiply_dense(x: Tensor, matrix: Streamed) -> Tensor:
    """Products of many rows: some columns at a time are dequantized and go through torch."""
    out = torch.empty(x.shape[0], matrix.out_features, dtype=x.dtype, device=x.device)
    column, sorted_x, place = 0, x, -1
    for i, shape in enumerate(matrix.shapes):
        if matrix.input.row_blocks[i] != place:
            sorted_x, place = x[:, matrix.order_of(i)], matrix.input.row_blocks[i]
        for start, stop in column_parts(shape.in_features, shape.out_features, TILE_COLUMNS, WORK_TIMES[matrix.dtype]):
            _multiply_columns(sorted_x, matrix, i, start, out[:, column + start : column + stop])
        column += shape.out_features
    return out


def _multiply_columns(x: Tensor, matrix: Streamed, index: int, start: int, out: Tensor) -> None:
    """x [T, K] sorted -> out [T, columns] of one matrix; what it dequantizes is let go before the next are."""
    torch.mm(x, matrix.dense(index, start, start + out.shape[1]).to(x.dtype).T, out=out)


def dequantize(matrix: Matrix) -> Tensor:
    if not isinstance(matrix, Streamed):
        return triton.dequantize(matrix)
    out = torch.empty(matrix.in_features, matrix.out_features, dtype=matrix.dtype, device=matrix.stream.device)
    column = 0
    for i, shape in enumerate(matrix.shapes):
        dense = matrix.dense(i, 0, shape.out_features).T.to(matrix.dtype)
        out[matrix.order_of(i).long(), column : column + shape.out_features] = dense
        column += shape.out_features
    return out
