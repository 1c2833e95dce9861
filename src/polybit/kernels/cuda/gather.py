"""Activations of many rows in the order of a matrix's rows, and what comes before a product: launches of gather.cu."""

from enum import IntEnum
from functools import cache

import numpy as np
import torch
from torch import Tensor

from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.decode import ACTIVATIONS, KINDS, aligned
from polybit.kernels.cuda.launch import Argument, Kernel, shared_memory
from polybit.kernels.triton.reduction import num_processors
from polybit.spec import Activation

STATIC_BYTES = 2048  # shared memory that the kernel declares itself, and what the driver keeps
MOST_SHARES = 4  # of a token among thread blocks, each of which works out all its features


class Form(IntEnum):
    """How sorted activations lie; `gather.cu` says it in full."""

    DENSE = 0  # [T, sorted features], for torch
    BLOCKS = 1  # for `exl2_batch`
    CORES = 2  # for `exl2_warpgroup`, which wants whole eights of tokens

    def empty(self, num_tokens: int, num_sorted: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        rows = -(-num_tokens // 8) * 8 if self is Form.CORES else num_tokens
        return torch.empty(rows, num_sorted, dtype=dtype, device=device)


def gather(x: Tensor, order: Tensor, form: Form = Form.DENSE, dtype: torch.dtype | None = None) -> Tensor:
    """x [T, K] -> x[:, order], in its dtype or rounded to `dtype`."""
    x = aligned(x)
    return _launch("gather_rows", order, x, form, dtype or x.dtype, x.stride(0))


def gather_normed(
    x: Tensor, weight: Tensor, eps: float, offset: float, dtype: torch.dtype, order: Tensor, form: Form = Form.DENSE
) -> Tensor:
    """The same of rms_norm(x), weight [K], rounded once to `dtype`."""
    x, numbers = aligned(x), (np.float32(eps), np.float32(offset))
    return _launch("gather_normed", order, x, form, dtype, x.stride(0), aligned(weight), *numbers, kind=weight.dtype)


def gather_gated(
    gate: Tensor, up: Tensor, activation: Activation, order: Tensor, form: Form = Form.DENSE,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The same of act(gate) * up, both [T, K], in the dtype of gate or rounded to `dtype`."""
    gate, up = aligned(gate), aligned(up)
    strides, number = (gate.stride(0), up.stride(0)), ACTIVATIONS.index(activation)
    return _launch("gather_gated", order, gate, form, dtype or gate.dtype, strides[0], up, strides[1], number)


def can_gather(width: int, device: torch.device) -> bool:
    """Whether a row fits the shared memory of a thread block."""
    return 2 * width + STATIC_BYTES <= shared_memory(device.index)


@cache
def build(dtype: torch.dtype, weight: torch.dtype, out: torch.dtype, tokens: int, form: Form = Form.DENSE) -> Build:
    kinds = {"IN": KINDS[dtype], "WEIGHT": KINDS[weight], "OUT": KINDS[out]}
    return Build.of("gather.cu", kinds | {"TOKENS": tokens, "FORM": int(form)})


def _launch(
    name: str, order: Tensor, x: Tensor, form: Form, dtype: torch.dtype, *arguments: Argument,
    kind: torch.dtype = torch.float16,
) -> Tensor:  # fmt: skip
    num_tokens, width = x.shape
    tokens, grid, threads = shape_of_launch(num_tokens, width, form, x.device)
    out = form.empty(num_tokens, len(order), dtype, x.device)
    Kernel.get(build(x.dtype, kind, dtype, tokens, form), name, x.device).launch(
        grid, threads, order, out, len(order), width, num_tokens, x, *arguments, shared_bytes=2 * tokens * width,
        overlap=True,
    )  # fmt: skip
    return out


def shape_of_launch(num_tokens: int, width: int, form: Form, device: torch.device) -> tuple[int, tuple[int, int], int]:
    """Tokens of a thread block, grid, and threads: all the card's threads for a few tokens, else the least work."""
    if form is Form.DENSE:
        two_fit_twice = 2 * (4 * width + STATIC_BYTES) <= shared_memory(device.index)
        tokens = 2 if two_fit_twice else 1
        return tokens, (-(-num_tokens // tokens), 1), 256 if width <= 8192 else 512
    shares = num_processors(device) // num_tokens
    return 1, (num_tokens, max(1, min(MOST_SHARES, shares))), min(1024, max(32, width // 8 // 32 * 32))
