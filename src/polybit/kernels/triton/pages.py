"""Keys and values of one step into the pages of the K/V pool, both in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from polybit.kernels.triton.rope import dense_heads

BLOCK = 1024


@triton.jit
def _write_kv(k, v, k_pages, v_pages, slots, k_stride, v_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part // 2 * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(slots + token).to(tl.int64) * WIDTH + column
    if part % 2 == 0:
        tl.store(k_pages + at, tl.load(k + token * k_stride + column, column < WIDTH), column < WIDTH)
    else:
        tl.store(v_pages + at, tl.load(v + token * v_stride + column, column < WIDTH), column < WIDTH)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    k, v = dense_heads(k), dense_heads(v)
    tokens, num_heads, head_dim = k.shape
    width = num_heads * head_dim
    _write_kv[tokens, 2 * triton.cdiv(width, BLOCK)](
        k, v, k_pages, v_pages, slots, k.stride(0), v.stride(0), WIDTH=width, BLOCK=BLOCK
    )
