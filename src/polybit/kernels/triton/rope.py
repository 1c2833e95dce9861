"""Rotary position embedding (arXiv 2104.09864) of queries and keys in one launch, fp32 inside."""

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 4  # heads a program


@triton.jit
def _turn(
    x,
    out,
    cos,
    sin,
    first_head,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """HEADS heads of one token, x and out being its rows [H, D]: pairs are turned, features beyond them copied."""
    head = first_head + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, BLOCK)[None, :]
    inside = (head < NUM_HEADS) & (pair < HALF)
    at = head * HEAD_DIM + (2 * pair if INTERLEAVED else pair)
    other = at + (1 if INTERLEAVED else HALF)
    a, b = tl.load(x + at, inside, other=0.0).to(tl.float32), tl.load(x + other, inside, other=0.0).to(tl.float32)
    c, s = tl.load(cos + pair, pair < HALF, other=0.0), tl.load(sin + pair, pair < HALF, other=0.0)
    tl.store(out + at, a * c - b * s, inside)
    tl.store(out + other, b * c + a * s, inside)
    for start in tl.static_range(2 * HALF, HEAD_DIM, BLOCK):
        feature = start + tl.arange(0, BLOCK)[None, :]
        kept = (head < NUM_HEADS) & (feature < HEAD_DIM)
        tl.store(out + head * HEAD_DIM + feature, tl.load(x + head * HEAD_DIM + feature, kept), kept)


@triton.jit
def _rope(
    q,
    k,
    positions,
    cos,
    sin,
    q_out,
    k_out,
    q_stride,
    k_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + token).to(tl.int64)
    cos += position * HALF
    sin += position * HALF
    q_parts: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    if part < q_parts:
        x, out = q + token * q_stride, q_out + token * (NUM_HEADS * HEAD_DIM)
        _turn(x, out, cos, sin, part * HEADS, NUM_HEADS, HEAD_DIM, HALF, INTERLEAVED, HEADS, BLOCK)
    else:
        x, out = k + token * k_stride, k_out + token * (NUM_KV_HEADS * HEAD_DIM)
        _turn(x, out, cos, sin, (part - q_parts) * HEADS, NUM_KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, HEADS, BLOCK)


def rope(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    q, k = dense_heads(q), dense_heads(k)
    tokens, num_heads, head_dim = q.shape
    num_kv_heads, half = k.shape[1], cos.shape[1]
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    _rope[tokens, triton.cdiv(num_heads, HEADS) + triton.cdiv(num_kv_heads, HEADS)](
        q,
        k,
        positions,
        cos,
        sin,
        q_out,
        k_out,
        q.stride(0),
        k.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        INTERLEAVED=interleaved,
        HEADS=HEADS,
        BLOCK=triton.next_power_of_2(half),
        num_warps=2,
    )
    return q_out, k_out


def dense_heads(x: Tensor) -> Tensor:
    """[T, H, D] whose tokens are dense, though there may be something between them: columns of a wider matrix."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
