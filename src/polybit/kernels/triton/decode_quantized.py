"""Keys and values of quantized pages in a decode step's attention: each warp works on keys of its own.

They lie as fragments.py says, so a thread multiplies what it has loaded itself. Part of decode_kernel.py.
"""

import triton
import triton.language as tl

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
def load_fragments(
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
    """As `_load_chunk` of decode_kernel.py, each thread what it will work on: keys, even values, odd values."""
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
def take_in_fragments(
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
        next_keys, next_k_steps, next_even, next_odd, next_even_steps, next_odd_steps = load_fragments(
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
