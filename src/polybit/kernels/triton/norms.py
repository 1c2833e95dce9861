"""RMSNorm and LayerNorm over the last axis: some rows a program, each row once through registers, fp32 inside."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ELEMENTS = 1024  # narrow rows, such as heads, share a program of at least so many


@triton.jit(do_not_specialize=["num_rows"])
def _norm(
    x,
    weight,
    bias,
    out,
    num_rows,
    eps,
    offset,
    WIDTH: tl.constexpr,
    WEIGHT_ROWS: tl.constexpr,
    CENTRED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (column < WIDTH)
    at = row.to(tl.int64) * WIDTH + column
    at_weight = row % WEIGHT_ROWS * WIDTH + column
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    if CENTRED:
        mean = tl.sum(value, 1) / WIDTH
        value = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 1) / WIDTH + eps)
    value = value * scale[:, None] * (tl.load(weight + at_weight, inside, other=0.0).to(tl.float32) + offset)
    if bias is not None:
        value += tl.load(bias + at_weight, inside, other=0.0).to(tl.float32)
    tl.store(out + at, value, inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return _launch(x, weight, None, eps, offset, centred=False)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return _launch(x, weight, bias, eps, 0.0, centred=True)


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, offset: float, centred: bool) -> Tensor:
    """x [..., W]; weight and bias [W] or [H, W], the latter where x is [..., H, W]."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    num_rows = x.numel() // width
    block = triton.next_power_of_2(width)
    rows = max(1, BLOCK_ELEMENTS // block)
    _norm[(triton.cdiv(num_rows, rows),)](
        x,
        weight,
        bias,
        out,
        num_rows,
        eps,
        offset,
        WIDTH=width,
        WEIGHT_ROWS=weight.numel() // width,
        CENTRED=centred,
        ROWS=rows,
        BLOCK=block,
        num_warps=min(16, max(4, block // 512)),
    )
    return out
