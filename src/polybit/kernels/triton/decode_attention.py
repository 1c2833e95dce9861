"""Attention of one new token for each sequence, from the product's columns to mixed values in one launch.

A program takes the heads that share a key head, norms and turns them in registers, and goes through chunks of the
sequence's keys, the next one on its way while it works on one (online softmax, arXiv 2205.14135). Of quantized pages
each warp works on keys of its own, as fragments.py lays them. Chunks are dealt out among programs. The last of them
also stores the new key and value, which nobody reads back from their page; whoever finishes last joins what all have
found, in a fixed order. Logits are kept in units of log2.

Where cards can, it starts while the launch before it still works, and reads the first of the older keys and values.
"""

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.kernels.pages import FULL, GROUP, Pages
from polybit.kernels.protocol import HeadNorm, Rotation
from polybit.kernels.triton import fragments
from polybit.kernels.triton.attention import LOG2_E, capped
from polybit.kernels.triton.fragments import (
    QUAD,
    QUADS,
    in_order_of_features,
    in_order_of_keys,
    key_places,
    keys_of,
    load_words,
    value_places,
    vector,
)
from polybit.kernels.triton.pages import arguments_of
from polybit.kernels.triton.reduction import MAX_SUMS, arrives_last, can_overlap, counters, num_processors
from polybit.kernels.triton.rope import dense_heads
from polybit.kernels.triton.rows import load_rows, store_rows, turn, values_of

MAX_PARTS = 64
JOINED_ELEMENTS = 16384  # of parts on their way at a time


@triton.jit
def _norm_and_turn(
    heads,
    shown,
    norm,
    eps,
    offset,
    cos,
    sin,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Heads at `heads` [R, 1], those that are `shown`, as fp32 [R, BLOCK_D]; cos and sin at the token's position."""
    feature = tl.arange(0, BLOCK_D)[None, :]
    value = tl.load(heads + feature, shown & (feature < HEAD_DIM), other=0.0).to(tl.float32)
    if norm is not None:
        scale = tl.rsqrt(tl.sum(value * value, 1) / HEAD_DIM + eps)[:, None]
        value *= scale * (tl.load(norm + feature, feature < HEAD_DIM, other=0.0).to(tl.float32) + offset)
    if cos is not None:
        turned = feature < 2 * HALF
        if INTERLEAVED:
            partner, pair, is_first = feature ^ 1, feature // 2, feature % 2 == 0
        else:
            partner, pair, is_first = (feature + HALF) % (2 * HALF), feature % HALF, feature < HALF
        other = tl.load(heads + partner, shown & turned, other=0.0).to(tl.float32)
        if norm is not None:
            other *= scale * (tl.load(norm + partner, turned, other=0.0).to(tl.float32) + offset)
        c, s = tl.load(cos + pair, turned, other=1.0), tl.load(sin + pair, turned, other=0.0)
        value = value * c + tl.where(is_first, -other, other) * s
    return value


@triton.jit
def _load_chunk(
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_row,
    num_pages,
    kv_head,
    start,
    stop,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Keys and values [start, start + BLOCK_N) of a sequence, those before `stop`, as they lie there."""
    key = start + tl.arange(0, BLOCK_N)
    inside = key < stop
    if PAGE_TOKENS % BLOCK_N == 0:  # a chunk is of one page
        place = start // PAGE_TOKENS  # looked up before it is known whether the sequence goes as far
        page = tl.load(page_row + place, place < num_pages, other=0).to(tl.int64)
        first = (page * PAGE_TOKENS + start % PAGE_TOKENS) * NUM_KV_HEADS + kv_head
        row = tl.arange(0, BLOCK_N) * NUM_KV_HEADS
    else:
        page = tl.load(page_row + key // PAGE_TOKENS, inside, other=0).to(tl.int64)
        first, row = kv_head, (page * PAGE_TOKENS + key % PAGE_TOKENS) * NUM_KV_HEADS
    keys, k_steps = load_rows(k_pages, k_scales, first, row, inside, HEAD_DIM, BLOCK_D, K_BITS, SPAN)
    values, v_steps = load_rows(v_pages, v_scales, first, row, inside, HEAD_DIM, BLOCK_D, V_BITS, SPAN)
    return keys, values, k_steps, v_steps


@triton.jit
def _load_at(
    pages,
    scales,
    page_row,
    num_pages,
    kv_head,
    start,
    stop,
    key,
    word,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Words of keys start + key of a sequence, those before `stop`, and their scales."""
    inside = start + key < stop
    if PAGE_TOKENS % BLOCK_N == 0:
        place = start // PAGE_TOKENS
        page = tl.load(page_row + place, place < num_pages, other=0).to(tl.int64)
        first, row = (page * PAGE_TOKENS + start % PAGE_TOKENS) * NUM_KV_HEADS + kv_head, key * NUM_KV_HEADS
    else:
        key += start
        page = tl.load(page_row + key // PAGE_TOKENS, inside, other=0).to(tl.int64)
        first, row = kv_head, (page * PAGE_TOKENS + key % PAGE_TOKENS) * NUM_KV_HEADS
    return load_words(pages, scales, first, row, inside, word, HEAD_DIM, BITS, SPAN, VECTOR)


@triton.jit
def _load_fragments(
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_row,
    num_pages,
    kv_head,
    start,
    stop,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
    WARPS: tl.constexpr,
):
    """As `_load_chunk`, of quantized pages, each thread what it will work on: keys, even values, odd values."""
    key, word = key_places(BLOCK_D, BLOCK_N // WARPS, WARPS, K_BITS, SPAN)
    keys, k_steps = _load_at(
        k_pages, k_scales, page_row, num_pages, kv_head, start, stop, key, word,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_N, PAGE_TOKENS, K_BITS, SPAN, vector(BLOCK_D, K_BITS, SPAN, QUAD),
    )  # fmt: skip
    key, word = value_places(BLOCK_D, BLOCK_N // WARPS, WARPS, V_BITS, SPAN)
    even, even_steps = _load_at(
        v_pages, v_scales, page_row, num_pages, kv_head, start, stop, key, word,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_N, PAGE_TOKENS, V_BITS, SPAN, vector(BLOCK_D, V_BITS, SPAN, QUADS),
    )  # fmt: skip
    odd, odd_steps = _load_at(
        v_pages, v_scales, page_row, num_pages, kv_head, start, stop, key + 1, word,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_N, PAGE_TOKENS, V_BITS, SPAN, vector(BLOCK_D, V_BITS, SPAN, QUADS),
    )  # fmt: skip
    return keys, k_steps, even, odd, even_steps, odd_steps


@triton.jit
def _take_in_quantized(
    queries,
    keys,
    k_steps,
    even,
    odd,
    even_steps,
    odd_steps,
    maximum,
    total,
    accumulator,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_row,
    num_pages,
    kv_head,
    first_chunk,
    stop_chunk,
    num_parts,
    position,
    scale,
    window,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Every num_parts-th chunk, the first of which is loaded, into what was found before -> maximum, total, accumulator

    A warp has its own keys of each chunk, its own maximum and its own sums, which are joined at the end: until then no
    warp waits for another.
    """
    per_warp: tl.constexpr = BLOCK_N // WARPS
    ordered = in_order_of_keys(queries, BLOCK_M, BLOCK_D, K_BITS, SPAN)
    ordered = tl.broadcast_to(ordered[None, :, :], WARPS, BLOCK_M, BLOCK_D)
    maxima = tl.full([WARPS, BLOCK_M], float("-inf"), tl.float32)
    totals = tl.zeros([WARPS, BLOCK_M], tl.float32)
    found = tl.zeros([WARPS, BLOCK_M, BLOCK_D], tl.float32)
    own_key = tl.arange(0, WARPS)[:, None] * per_warp + tl.arange(0, per_warp)[None, :]
    for chunk in range(first_chunk, stop_chunk, num_parts):
        next_keys, next_k_steps, next_even, next_odd, next_even_steps, next_odd_steps = _load_fragments(
            k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, (chunk + num_parts) * BLOCK_N, position,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_N, BLOCK_D, PAGE_TOKENS, K_BITS, V_BITS, SPAN, WARPS,
        )  # fmt: skip
        key = chunk * BLOCK_N + own_key
        visible = key < position
        if window is not None:
            visible &= key > position - window
        seen_keys = keys_of(keys, k_steps, queries.dtype, BLOCK_D, per_warp, WARPS, K_BITS, SPAN)
        logits = tl.dot(ordered, seen_keys) * scale
        logits = tl.where(visible[:, None, :], capped(logits, softcap) * LOG2_E, float("-inf"))
        new_maxima = tl.maximum(maxima, tl.max(logits, 2))
        base = tl.where(new_maxima == float("-inf"), 0.0, new_maxima)  # a warp may have seen no key yet
        weights = tl.exp2(logits - base[:, :, None])
        decay = tl.exp2(maxima - base)
        totals = totals * decay + tl.sum(weights, 2)
        seen_values = fragments.values_of(
            even, odd, even_steps, odd_steps, queries.dtype, BLOCK_D, per_warp, WARPS, V_BITS, SPAN
        )
        found = tl.dot(weights.to(seen_values.dtype), seen_values, found * decay[:, :, None])
        maxima = new_maxima
        keys, k_steps, even, odd = next_keys, next_k_steps, next_even, next_odd
        even_steps, odd_steps = next_even_steps, next_odd_steps
    new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
    shares, decay = tl.exp2(maxima - new_maximum[None, :]), tl.exp2(maximum - new_maximum)
    total = total * decay + tl.sum(shares * totals, 0)
    shared = found * shares[:, :, None]
    if BLOCK_G * 2 <= BLOCK_M:  # what the lower half found of no head need not go from warp to warp
        upper = (tl.arange(0, 2) == 0)[None, :, None, None]
        halves = tl.reshape(shared, [WARPS, 2, BLOCK_M // 2, BLOCK_D])
        half = tl.sum(tl.sum(tl.where(upper, halves, 0.0), 1), 0)
        mixed = tl.broadcast_to(half[None, :, :], 2, BLOCK_M // 2, BLOCK_D)
        mixed = tl.reshape(mixed, [BLOCK_M, BLOCK_D])
    else:
        mixed = tl.sum(shared, 0)
    mixed = in_order_of_features(mixed, BLOCK_M, BLOCK_D, V_BITS, SPAN)
    return new_maximum, total, accumulator * decay[:, None] + mixed


@triton.jit
def _join(
    parts,
    sums,
    num_parts,
    out,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AT_ONCE: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Parts [num_parts, GROUP, BLOCK_D] of one key head, first to last, into its heads at `out`."""
    head, feature = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    maximum = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    accumulator = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(0, num_parts, AT_ONCE):
        part = start + tl.arange(0, AT_ONCE)
        at = head[:, None] + part[None, :] * GROUP
        there = (head < GROUP)[:, None] & (part < num_parts)[None, :]
        found = parts + at[:, :, None] * BLOCK_D + feature[None, None, :]
        found = tl.load(found, there[:, :, None], other=0.0, cache_modifier=".cg")
        maxima = tl.load(sums + 2 * at, there, other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(sums + 2 * at + 1, there, other=0.0, cache_modifier=".cg")
        new_maximum = tl.where(head < GROUP, tl.maximum(maximum, tl.max(maxima, 1)), 0.0)
        weights, decay = tl.exp2(maxima - new_maximum[:, None]), tl.exp2(maximum - new_maximum)
        total = total * decay + tl.sum(weights * totals, 1)
        accumulator = accumulator * decay[:, None] + tl.sum(weights[:, :, None] * found, 1)
        maximum = new_maximum
    shown = (head < GROUP)[:, None] & (feature < HEAD_DIM)[None, :]
    mixed = accumulator / tl.where(head < GROUP, total, 1.0)[:, None]
    if V_BITS < 16:
        mixed = turn(mixed.to(out.dtype.element_ty), BLOCK_G, BLOCK_D, SPAN)
    tl.store(out + head[:, None] * HEAD_DIM + feature[None, :], mixed, shown)


@triton.jit(do_not_specialize=["table_stride", "num_pages", "window", "max_parts"])
def _decode_attention(
    q,
    k,
    v,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_table,
    lengths,
    q_norm,
    k_norm,
    cos,
    sin,
    out,
    parts,
    sums,
    counters,
    q_stride,
    k_stride,
    v_stride,
    table_stride,
    num_pages,
    max_parts,
    q_eps,
    q_offset,
    k_eps,
    k_offset,
    scale,
    window,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
    WARPS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    pair, part = tl.program_id(0), tl.program_id(1)
    sequence, kv_head = (pair // NUM_KV_HEADS).to(tl.int64), pair % NUM_KV_HEADS
    position = tl.load(lengths + sequence) - 1  # of the new token; the keys before it are in pages
    first_chunk = 0
    if window is not None:
        first_chunk = tl.maximum(position + 1 - window, 0) // BLOCK_N
    stop_chunk = tl.cdiv(position, BLOCK_N)
    num_parts = tl.minimum(tl.maximum(stop_chunk - first_chunk, 1), max_parts)

    page_row = page_table + sequence * table_stride
    chunk = first_chunk + part
    if WARPS > 0:
        keys, k_steps, even, odd, even_steps, odd_steps = _load_fragments(
            k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, chunk * BLOCK_N, position,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_N, BLOCK_D, PAGE_TOKENS, K_BITS, V_BITS, SPAN, WARPS,
        )  # fmt: skip
    else:
        keys, values, k_steps, v_steps = _load_chunk(
            k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, chunk * BLOCK_N, position,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_N, BLOCK_D, PAGE_TOKENS, K_BITS, V_BITS, SPAN,
        )  # fmt: skip
    if part >= num_parts:
        return
    if OVERLAP:  # so far nothing was read that the launch before this one may have written
        tl.extra.cuda.gdc_wait()

    if cos is not None:
        cos += position.to(tl.int64) * HALF
        sin += position.to(tl.int64) * HALF
    feature = tl.arange(0, BLOCK_D)[None, :]
    row = tl.arange(0, BLOCK_M)[:, None]
    queries = _norm_and_turn(
        q + sequence * q_stride + (kv_head * GROUP + row) * HEAD_DIM, row < GROUP, q_norm, q_eps, q_offset, cos, sin,
        HEAD_DIM, BLOCK_D, HALF, INTERLEAVED,
    ).to(q.dtype.element_ty)  # fmt: skip
    if K_BITS < 16:
        queries = turn(queries, BLOCK_M, BLOCK_D, SPAN).to(queries.dtype)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if part == num_parts - 1:
        one = tl.arange(0, 1)[:, None]
        new_key = _norm_and_turn(
            k + sequence * k_stride + kv_head * HEAD_DIM + one, one == 0, k_norm, k_eps, k_offset, cos, sin,
            HEAD_DIM, BLOCK_D, HALF, INTERLEAVED,
        ).to(k.dtype.element_ty)  # fmt: skip
        new_value = tl.load(v + sequence * v_stride + kv_head * HEAD_DIM + feature, feature < HEAD_DIM, other=0.0)
        page = tl.load(page_row + position // PAGE_TOKENS).to(tl.int64)
        slot = (page * PAGE_TOKENS + position % PAGE_TOKENS) * NUM_KV_HEADS + kv_head
        here = tl.arange(0, 1)
        new_key = store_rows(
            k_pages, k_scales, slot, here, here == 0, new_key, 1, HEAD_DIM, BLOCK_D, K_BITS, SPAN
        )  # fmt: skip
        new_value = store_rows(
            v_pages, v_scales, slot, here, here == 0, new_value, 1, HEAD_DIM, BLOCK_D, V_BITS, SPAN
        )  # fmt: skip
        logits = tl.sum(queries.to(tl.float32) * new_key.to(tl.float32), 1) * scale
        maximum = capped(logits, softcap) * LOG2_E
        total += 1.0
        accumulator += new_value.to(tl.float32)

    if WARPS > 0:
        maximum, total, accumulator = _take_in_quantized(
            queries, keys, k_steps, even, odd, even_steps, odd_steps, maximum, total, accumulator,
            k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, first_chunk + part, stop_chunk,
            num_parts, position, scale, window, softcap,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_G, PAGE_TOKENS, K_BITS, V_BITS, SPAN, WARPS,
        )  # fmt: skip
    else:
        for chunk in range(first_chunk + part, stop_chunk, num_parts):
            next_keys, next_values, next_k_steps, next_v_steps = _load_chunk(
                k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, (chunk + num_parts) * BLOCK_N,
                position, NUM_KV_HEADS, HEAD_DIM, BLOCK_N, BLOCK_D, PAGE_TOKENS, K_BITS, V_BITS, SPAN,
            )  # fmt: skip
            key = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
            visible = key < position
            if window is not None:
                visible &= key > position - window
            seen_keys = values_of(keys, k_steps, queries.dtype, BLOCK_N, BLOCK_D, K_BITS)
            logits = tl.dot(queries, tl.trans(seen_keys), input_precision="ieee") * scale
            logits = tl.where(visible[None, :], capped(logits, softcap) * LOG2_E, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, 1))
            weights = tl.exp2(logits - new_maximum[:, None])
            decay = tl.exp2(maximum - new_maximum)
            total = total * decay + tl.sum(weights, 1)
            seen_values = values_of(values, v_steps, queries.dtype, BLOCK_N, BLOCK_D, V_BITS)
            accumulator = tl.dot(
                weights.to(seen_values.dtype), seen_values, accumulator * decay[:, None], input_precision="ieee"
            )
            maximum = new_maximum
            keys, values, k_steps, v_steps = next_keys, next_values, next_k_steps, next_v_steps

    out += sequence * (NUM_KV_HEADS * GROUP * HEAD_DIM) + kv_head * (GROUP * HEAD_DIM)
    if num_parts == 1:
        shown = (row < GROUP) & (feature < HEAD_DIM)
        mixed = accumulator / total[:, None]
        if V_BITS < 16:
            mixed = turn(mixed.to(out.dtype.element_ty), BLOCK_M, BLOCK_D, SPAN)
        tl.store(out + row * HEAD_DIM + feature, mixed, shown)
        return
    parts += pair.to(tl.int64) * max_parts * (GROUP * BLOCK_D)
    sums += pair.to(tl.int64) * max_parts * (GROUP * 2)
    head = tl.arange(0, BLOCK_M)
    at = part * GROUP + head
    tl.store(parts + at[:, None] * BLOCK_D + feature, accumulator, row < GROUP, cache_modifier=".cg")
    tl.store(sums + 2 * at, maximum, head < GROUP, cache_modifier=".cg")
    tl.store(sums + 2 * at + 1, total, head < GROUP, cache_modifier=".cg")
    if arrives_last(counters + pair, num_parts):
        _join(parts, sums, num_parts, out, GROUP, HEAD_DIM, BLOCK_G, BLOCK_D, AT_ONCE, V_BITS, SPAN)


@dataclass(frozen=True)
class Tiles:
    """keys: taken in at a time."""

    keys: int
    warps: int


QUANTIZED_TILES = Tiles(keys=128, warps=8)  # as many keys a warp as a tensor core takes in of values


@functools.cache
def choose_tiles(rows: int, block_d: int, dtype: torch.dtype) -> Tiles:
    """So that two chunks fit the registers, beside what `rows` heads need."""
    is_wide = rows > 16 or dtype.itemsize > 2
    chunk_bytes = 16 << 10 if is_wide else 32 << 10
    keys = max(16, min(128, chunk_bytes // (block_d * dtype.itemsize)))
    return Tiles(keys, warps=8 if is_wide or keys * block_d > 8192 else 4)


def fits_warps(rows: int, block_d: int, dtype: torch.dtype) -> bool:
    """Whether a warp's registers hold sums of its own, beside the queries that it multiplies by tensor cores."""
    return rows == 16 and block_d <= 128 and dtype.itemsize == 2


def max_parts(num_pairs: int, processors: int) -> int:
    """Programs that a key head's chunks are dealt out to, so that every processor has one."""
    return 1 if num_pairs > MAX_SUMS else max(1, min(MAX_PARTS, processors // num_pairs))


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    page_table: Tensor,
    lengths: Tensor,
    q_norm: HeadNorm | None,
    k_norm: HeadNorm | None,
    rotation: Rotation | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The type of pages that are not quantized is q's."""
    q, k, v = dense_heads(q), dense_heads(k), dense_heads(v)
    device, (sequences, num_heads, head_dim) = q.device, q.shape
    keys, values = arguments_of(k_pages), arguments_of(v_pages)
    page_tokens, num_kv_heads = keys.page_tokens, keys.num_kv_heads
    group, pairs = num_heads // num_kv_heads, sequences * num_kv_heads
    block_d, block_g = max(16, triton.next_power_of_2(head_dim)), triton.next_power_of_2(group)
    rows = max(16, block_g)
    tiles = choose_tiles(rows, block_d, q.dtype)
    by_warp = max(keys.bits, values.bits) < FULL.k and fits_warps(rows, block_d, q.dtype)
    if by_warp:
        tiles = QUANTIZED_TILES
    num_parts = max_parts(pairs, num_processors(device))
    part_rows = pairs * num_parts * group if num_parts > 1 else 0
    overlap = can_overlap(device)
    out = torch.empty(q.shape, dtype=q.dtype, device=device)
    _decode_attention[pairs, num_parts](
        q,
        k,
        v,
        keys.rows,
        values.rows,
        keys.scales,
        values.scales,
        page_table,
        lengths,
        None if q_norm is None else q_norm.weight,
        None if k_norm is None else k_norm.weight,
        None if rotation is None else rotation.cos,
        None if rotation is None else rotation.sin,
        out,
        torch.empty(part_rows * block_d, dtype=torch.float32, device=device),
        torch.empty(part_rows * 2, dtype=torch.float32, device=device),
        counters(device),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        page_table.stride(0),
        page_table.shape[1],
        num_parts,
        0.0 if q_norm is None else q_norm.eps,
        0.0 if q_norm is None else q_norm.offset,
        0.0 if k_norm is None else k_norm.eps,
        0.0 if k_norm is None else k_norm.offset,
        scale,
        window,
        softcap,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        HALF=0 if rotation is None else rotation.cos.shape[1],
        INTERLEAVED=rotation is not None and rotation.interleaved,
        BLOCK_M=rows,
        BLOCK_N=tiles.keys,
        BLOCK_D=block_d,
        BLOCK_G=block_g,
        AT_ONCE=min(MAX_PARTS, max(1, JOINED_ELEMENTS // (block_g * block_d))),
        PAGE_TOKENS=page_tokens,
        K_BITS=keys.bits,
        V_BITS=values.bits,
        SPAN=math.gcd(head_dim, GROUP),
        WARPS=tiles.warps if by_warp else 0,
        OVERLAP=overlap,
        num_warps=tiles.warps,
        num_stages=1,
        **({"launch_pdl": True} if overlap else {}),
    )
    return out
