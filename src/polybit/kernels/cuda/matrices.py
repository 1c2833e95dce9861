"""Matrices of this backend: EXL2 ones as streams where activations are of half precision; the others are Triton's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor, Layout
from polybit.kernels import triton
from polybit.kernels.composed import InTurn
from polybit.kernels.cuda import batch, decode, prompt, streamed
from polybit.kernels.cuda.decode import MAX_ROWS
from polybit.kernels.cuda.schedule import Shape
from polybit.kernels.cuda.stream import stream_layout
from polybit.kernels.cuda.streamed import HALF, Streamed
from polybit.kernels.protocol import Matrix
from polybit.spec import Activation

GROUP_BYTES = 4 + 8  # of a Streamed: the scale maximum, and where its activations lie
ORDER_BYTES = 4  # for each input feature


def prepare_exl2(
    tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    if unpacked or dtype not in HALF:
        return triton.prepare_exl2(tensor, prescale, device, dtype, unpacked)
    return streamed.prepare(tensor, prescale, device, dtype)


def exl2_bytes(layout: Layout, out_features: int, dtype: torch.dtype) -> int:
    if dtype not in HALF:
        return triton.exl2_bytes(layout, out_features, dtype)
    shape = Shape(stream_layout(layout), out_features)
    return shape.num_bytes + GROUP_BYTES * len(shape.layout.groups) + ORDER_BYTES * layout.in_features


def join(matrices: Sequence[Matrix]) -> Matrix | None:
    streams = [matrix for matrix in matrices if isinstance(matrix, Streamed)]
    return streamed.join(streams) if len(streams) == len(matrices) else None


def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
    if not isinstance(matrix, Streamed):
        return triton.matmul(x, matrix, residual)
    if batch.serves(matrix, len(x)):
        return batch.multiply(x, matrix, residual)
    if len(x) <= MAX_ROWS:
        return decode.multiply(x, matrix, residual)
    return _plus(prompt.multiply(x, matrix), residual)


_in_turn = InTurn(triton.rms_norm, triton.gated_activate, matmul)


def norm_matmul(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Matrix) -> Tensor:
    if not isinstance(matrix, Streamed) or weight.dim() > 1:
        return _in_turn.norm_matmul(x, weight, eps, offset, matrix)
    if batch.serves(matrix, len(x)):
        return batch.norm_multiply(x, weight, eps, offset, matrix)
    multiply = decode.norm_multiply if len(x) <= MAX_ROWS else prompt.norm_multiply
    return multiply(x, weight, eps, offset, matrix)


def gated_matmul(
    gate: Tensor, up: Tensor, activation: Activation, matrix: Matrix, residual: Tensor | None = None
) -> Tensor:
    if not isinstance(matrix, Streamed):
        return triton.gated_matmul(gate, up, activation, matrix, residual)
    if batch.serves(matrix, len(gate)):
        return batch.gated_multiply(gate, up, activation, matrix, residual)
    if len(gate) <= MAX_ROWS:
        return decode.gated_multiply(gate, up, activation, matrix, residual)
    return _plus(prompt.gated_multiply(gate, up, activation, matrix), residual)


def _plus(y: Tensor, residual: Tensor | None) -> Tensor:
    return y if residual is None else residual + y


def dequantize(matrix: Matrix) -> Tensor:
    if not isinstance(matrix, Streamed):
        return triton.dequantize(matrix)
    out = torch.empty(matrix.in_features, matrix.out_features, dtype=matrix.dtype, device=matrix.stream.device)
    column = 0
    for i, shape in enumerate(matrix.shapes):
        dense = torch.empty(shape.out_features, shape.in_features, dtype=matrix.dtype, device=out.device)
        matrix.dequantize(i, 0, shape.out_features, dense)
        out[matrix.order_of(i).long(), column : column + shape.out_features] = dense.T
        column += shape.out_features
    return out
