"""RMSNorm. Formula: kernels/reference/norms.py."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array
from polybit.kernels.cpu.inner import inner


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    if x.dtype != torch.float32 or weight.dim() != 1 or weight.dtype != torch.float32:
        return reference.rms_norm(x, weight, eps, offset)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rms_norm(array(x).reshape(-1, x.shape[-1]), array(weight), eps, offset, out.numpy().reshape(-1, x.shape[-1]))
    return out


@njit(cache=True, error_model="numpy")
def _rms_norm(x: Floats, weight: Floats, eps: float, offset: float, out: Floats) -> None:
    for t in range(x.shape[0]):
        norm_row(x[t], weight, eps, offset, out[t])


@inner(fastmath={"reassoc", "contract"})
def norm_row(x: Floats, weight: Floats, eps: float, offset: float, out: Floats) -> None:
    shift, total = np.float32(offset), np.float32(0)
    for n in range(len(x)):
        total += x[n] * x[n]
    scale = np.float32(1 / np.sqrt(total / len(x) + eps))
    for n in range(len(x)):
        out[n] = x[n] * scale * (weight[n] + shift)
