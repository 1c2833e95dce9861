"""Matrices: dense ones, and quantized ones that are dequantized once at load or at every use."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from polybit.format import exl2, gptq
from polybit.format.exl2 import Exl2Tensor, Layout
from polybit.format.gptq import GptqTensor
from polybit.kernels.protocol import Matrix

MAX_WORK_WEIGHTS = 1 << 24  # weights of a packed matrix that are dequantized at once, which bounds the work space
COLUMN_STEP = 32


@dataclass(frozen=True)
class DenseMatrix:
    """weight [N, K]"""

    weight: Tensor

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes


@dataclass(frozen=True)
class PackedMatrix:
    """The file's words as they are; every product dequantizes them anew, some columns at a time."""

    tensor: Exl2Tensor | GptqTensor
    prescale: float
    dtype: torch.dtype

    @cached_property
    def parts(self) -> list[Exl2Tensor | GptqTensor]:
        """The matrix in views of at most MAX_WORK_WEIGHTS weights."""
        return [self.tensor.columns(*part) for part in column_parts(self.in_features, self.out_features)]

    @property
    def in_features(self) -> int:
        return self.tensor.in_features

    @property
    def out_features(self) -> int:
        return self.tensor.out_features

    @property
    def num_bytes(self) -> int:
        return self.tensor.num_bytes


def column_parts(in_features: int, out_features: int) -> list[tuple[int, int]]:
    """Start and stop of the columns that are dequantized at once: MAX_WORK_WEIGHTS at most, or COLUMN_STEP."""
    width = max(COLUMN_STEP, MAX_WORK_WEIGHTS // in_features // COLUMN_STEP * COLUMN_STEP)
    return [(start, min(start + width, out_features)) for start in range(0, out_features, width)]


def prepare_dense(weight: Tensor, device: torch.device, dtype: torch.dtype) -> Matrix:
    return DenseMatrix(weight.to(device, dtype))


def prepare_exl2(
    tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    return _prepare(PackedMatrix(tensor.to(device), prescale, dtype), unpacked)


def prepare_gptq(
    tensor: GptqTensor, prescale: float, device: torch.device, dtype: torch.dtype, unpacked: bool
) -> Matrix:
    return _prepare(PackedMatrix(tensor.to(device), prescale, dtype), unpacked)


def exl2_bytes(layout: Layout, out_features: int, dtype: torch.dtype) -> int:
    return exl2.storage_bits(layout, out_features, bias=False) // 8


def _prepare(packed: PackedMatrix, unpacked: bool) -> Matrix:
    return DenseMatrix(dequantize(packed).T.contiguous()) if unpacked else packed


def join(matrices: Sequence[Matrix]) -> Matrix | None:
    return None


def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
    y = _product(x, matrix)
    return y if residual is None else residual + y


def _product(x: Tensor, matrix: Matrix) -> Tensor:
    match matrix:
        case DenseMatrix(weight=weight):
            return F.linear(x, weight)
        case PackedMatrix(parts=parts):
            return torch.cat([x @ _dequantize(part, matrix) for part in parts], dim=-1)
        case _:
            raise foreign_matrix(matrix)


def dequantize(matrix: Matrix) -> Tensor:
    match matrix:
        case DenseMatrix(weight=weight):
            return weight.T
        case PackedMatrix(tensor=tensor):
            return _dequantize(tensor, matrix)
        case _:
            raise foreign_matrix(matrix)


def _dequantize(tensor: Exl2Tensor | GptqTensor, matrix: PackedMatrix) -> Tensor:
    match tensor:
        case Exl2Tensor():
            return exl2.dequantize(tensor, matrix.prescale).to(matrix.dtype)
        case GptqTensor():
            return gptq.dequantize(tensor, matrix.prescale).to(matrix.dtype)


def foreign_matrix(matrix: Matrix) -> TypeError:
    """A programming error: matrices are opaque to all but the backend that prepared them."""
    return TypeError(f"{type(matrix).__name__} was prepared by another backend")
