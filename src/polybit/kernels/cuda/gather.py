"""Activations of prompts in the order of a matrix's rows, and what comes before the product: launches of gather.cu."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.decode import ACTIVATIONS, KINDS
from polybit.kernels.cuda.launch import Argument, Kernel, shared_memory
from polybit.spec import Activation

STATIC_BYTES = 2048  # shared memory that the kernel declares itself, and what the driver keeps
VECTOR_BYTES = 16


def gather(x: Tensor, order: Tensor) -> Tensor:
    """x [T, K] -> x[:, order], in its dtype."""
    x = _aligned(x)
    return _launch("gather_rows", order, x, x.dtype, x.stride(0))


def gather_normed(x: Tensor, weight: Tensor, eps: float, offset: float, dtype: torch.dtype, order: Tensor) -> Tensor:
    """The same of rms_norm(x), weight [K], rounded once to `dtype`."""
    x, numbers = _aligned(x), (np.float32(eps), np.float32(offset))
    return _launch("gather_normed", order, x, dtype, x.stride(0), _aligned(weight), *numbers, kind=weight.dtype)


def gather_gated(gate: Tensor, up: Tensor, activation: Activation, order: Tensor) -> Tensor:
    """The same of act(gate) * up, both [T, K], in the dtype of gate."""
    gate, up = _aligned(gate), _aligned(up)
    strides, number = (gate.stride(0), up.stride(0)), ACTIVATIONS.index(activation)
    return _launch("gather_gated", order, gate, gate.dtype, strides[0], up, strides[1], number)


def can_gather(width: int, device: torch.device) -> bool:
    """Whether a row fits the shared memory of a thread block."""
    return 2 * width + STATIC_BYTES <= shared_memory(device.index)


@cache
def build(dtype: torch.dtype, weight: torch.dtype, out: torch.dtype, tokens: int) -> Build:
    macros = {"IN": KINDS[dtype], "WEIGHT": KINDS[weight], "OUT": KINDS[out], "TOKENS": tokens}
    return Build.of("gather.cu", macros)


def _launch(
    name: str, order: Tensor, x: Tensor, dtype: torch.dtype, *arguments: Argument, kind: torch.dtype = torch.float16
) -> Tensor:
    num_tokens, width = x.shape
    two_fit_twice = 2 * (4 * width + STATIC_BYTES) <= shared_memory(x.device.index)
    tokens = 2 if two_fit_twice else 1
    out = torch.empty(num_tokens, width, dtype=dtype, device=x.device)
    Kernel.get(build(x.dtype, kind, dtype, tokens), name, x.device).launch(
        (-(-num_tokens // tokens),), 256 if width <= 8192 else 512, order, out, width, num_tokens, x, *arguments,
        shared_bytes=2 * tokens * width,
    )  # fmt: skip
    return out


def _aligned(x: Tensor) -> Tensor:
    """Rows that can be read 16 bytes at a time."""
    starts = (x.data_ptr(), *(stride * x.itemsize for stride in x.stride()[:-1]))
    whole = x.stride(-1) == 1 and all(start % VECTOR_BYTES == 0 for start in starts)
    return x if whole else x.clone(memory_format=torch.contiguous_format)
