"""Keys and values of one step into the pages of the K/V pool, both in one launch."""

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from polybit.kernels.pages import FULL, GROUP, Pages
from polybit.kernels.triton.rope import dense_heads
from polybit.kernels.triton.rows import store_rows

BLOCK = 1024  # numbers a program


@dataclass(frozen=True)
class PageArguments:
    """What a launch says of pages."""

    rows: Tensor
    scales: Tensor | None
    bits: int

    @property
    def page_tokens(self) -> int:
        return self.rows.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.rows.shape[2]


def arguments_of(pages: Pages) -> PageArguments:
    if isinstance(pages, Tensor):
        return PageArguments(pages, None, FULL.k)
    return PageArguments(pages.codes, pages.scales, pages.bits)


@triton.jit
def _write_kv(
    k,
    v,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    slots,
    k_stride,
    v_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = tl.load(slots + token).to(tl.int64) * NUM_KV_HEADS
    head, feature = part // 2 * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)[None, :]
    inside = head < NUM_KV_HEADS
    at, shown = head[:, None] * HEAD_DIM + feature, inside[:, None] & (feature < HEAD_DIM)
    if part % 2 == 0:
        keys = tl.load(k + token * k_stride + at, shown, other=0.0)
        store_rows(k_pages, k_scales, first, head, inside, keys, ROWS, HEAD_DIM, BLOCK_D, K_BITS, SPAN)
    else:
        values = tl.load(v + token * v_stride + at, shown, other=0.0)
        store_rows(v_pages, v_scales, first, head, inside, values, ROWS, HEAD_DIM, BLOCK_D, V_BITS, SPAN)


def write_kv(k: Tensor, v: Tensor, k_pages: Pages, v_pages: Pages, slots: Tensor) -> None:
    k, v = dense_heads(k), dense_heads(v)
    tokens, num_heads, head_dim = k.shape
    keys, values = arguments_of(k_pages), arguments_of(v_pages)
    block_d = max(16, triton.next_power_of_2(head_dim))
    rows = min(max(1, BLOCK // block_d), triton.next_power_of_2(num_heads))
    _write_kv[tokens, 2 * triton.cdiv(num_heads, rows)](
        k,
        v,
        keys.rows,
        values.rows,
        keys.scales,
        values.scales,
        slots,
        k.stride(0),
        v.stride(0),
        NUM_KV_HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        ROWS=rows,
        K_BITS=keys.bits,
        V_BITS=values.bits,
        SPAN=math.gcd(head_dim, GROUP),
    )
