"""Matrices: dense ones, and quantized ones that are dequantized once at load or at every use."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polybit.format import exl2, gptq
from polybit.format.exl2 import Exl2Tensor
from polybit.format.gptq import GptqTensor
from polybit.kernels.protocol import Matrix


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
    """The file's words as they are; every product dequantizes them anew."""

    tensor: Exl2Tensor | GptqTensor
    prescale: float
    dtype: torch.dtype

    @property
    def in_features(self) -> int:
        return self.tensor.in_features

    @property
    def out_features(self) -> int:
        return self.tensor.out_features

    @property
    def num_bytes(self) -> int:
        return self.tensor.num_bytes


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


def _prepare(packed: PackedMatrix, unpacked: bool) -> Matrix:
    return DenseMatrix(dequantize(packed).T.contiguous()) if unpacked else packed


def matmul(x: Tensor, matrix: Matrix) -> Tensor:
    match matrix:
        case DenseMatrix(weight=weight):
            return F.linear(x, weight)
        case _:
            return x @ dequantize(matrix)


def dequantize(matrix: Matrix) -> Tensor:
    match matrix:
        case DenseMatrix(weight=weight):
            return weight.T
        case PackedMatrix(tensor=Exl2Tensor() as tensor, prescale=prescale, dtype=dtype):
            return exl2.dequantize(tensor, prescale).to(dtype)
        case PackedMatrix(tensor=GptqTensor() as tensor, prescale=prescale, dtype=dtype):
            return gptq.dequantize(tensor, prescale).to(dtype)
        case _:
            raise TypeError(f"{type(matrix).__name__} was prepared by another backend")
