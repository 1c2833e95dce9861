"""Rows of the token embedding."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _embedding(tokens, weight, out, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + row).to(tl.int64)
    value = tl.load(weight + token * WIDTH + column, column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, value * scale, column < WIDTH)


def embedding(tokens: Tensor, weight: Tensor, scale: float) -> Tensor:
    width = weight.shape[1]
    out = torch.empty(tokens.shape[0], width, dtype=torch.float32, device=weight.device)
    _embedding[tokens.shape[0], triton.cdiv(width, BLOCK)](tokens, weight, out, scale, WIDTH=width, BLOCK=BLOCK)
    return out
