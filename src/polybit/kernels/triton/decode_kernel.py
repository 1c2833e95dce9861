"""The kernel of a decode step's attention: decode_attention.py launches it, and says what its programs do.

Its part for quantized pages is in decode_quantized.py.
"""

import triton
import triton.language as tl

from polybit.kernels.triton.attention import LOG2_E, capped
from polybit.kernels.triton.decode_quantized import load_fragments, take_in_fragments
from polybit.kernels.triton.reduction import arrives_last
from polybit.kernels.triton.rows import load_rows, store_rows, turn, values_of


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
def _take_in(
    queries,
    keys,
    values,
    k_steps,
    v_steps,
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
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """As `take_in_fragments`, of chunks that `_load_chunk` loads. -> maximum, total, accumulator"""
    for chunk in range(first_chunk, stop_chunk, num_parts):
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
    return maximum, total, accumulator


@triton.jit
def _store_new(
    k,
    v,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_row,
    kv_head,
    position,
    norm,
    eps,
    offset,
    cos,
    sin,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """The new token's head at k and v into its page -> both [1, BLOCK_D] as readers will find them."""
    one, feature = tl.arange(0, 1)[:, None], tl.arange(0, BLOCK_D)[None, :]
    key = _norm_and_turn(
        k + one, one == 0, norm, eps, offset, cos, sin, HEAD_DIM, BLOCK_D, HALF, INTERLEAVED
    ).to(k.dtype.element_ty)  # fmt: skip
    value = tl.load(v + feature, feature < HEAD_DIM, other=0.0)
    page = tl.load(page_row + position // PAGE_TOKENS).to(tl.int64)
    slot = (page * PAGE_TOKENS + position % PAGE_TOKENS) * NUM_KV_HEADS + kv_head
    here = tl.arange(0, 1)
    key = store_rows(k_pages, k_scales, slot, here, here == 0, key, 1, HEAD_DIM, BLOCK_D, K_BITS, SPAN)
    value = store_rows(v_pages, v_scales, slot, here, here == 0, value, 1, HEAD_DIM, BLOCK_D, V_BITS, SPAN)
    return key, value


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
def attend_new_tokens(
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
        keys, k_steps, even, odd, even_steps, odd_steps = load_fragments(
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
        new_key, new_value = _store_new(
            k + sequence * k_stride + kv_head * HEAD_DIM, v + sequence * v_stride + kv_head * HEAD_DIM,
            k_pages, v_pages, k_scales, v_scales, page_row, kv_head, position, k_norm, k_eps, k_offset, cos, sin,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_D, HALF, INTERLEAVED, PAGE_TOKENS, K_BITS, V_BITS, SPAN,
        )  # fmt: skip
        logits = tl.sum(queries.to(tl.float32) * new_key.to(tl.float32), 1) * scale
        maximum = capped(logits, softcap) * LOG2_E
        total += 1.0
        accumulator += new_value.to(tl.float32)

    if WARPS > 0:
        maximum, total, accumulator = take_in_fragments(
            queries, keys, k_steps, even, odd, even_steps, odd_steps, maximum, total, accumulator,
            k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, first_chunk + part, stop_chunk,
            num_parts, position, scale, window, softcap,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_G, PAGE_TOKENS, K_BITS, V_BITS, SPAN, WARPS,
        )  # fmt: skip
    else:
        maximum, total, accumulator = _take_in(
            queries, keys, values, k_steps, v_steps, maximum, total, accumulator,
            k_pages, v_pages, k_scales, v_scales, page_row, num_pages, kv_head, first_chunk + part, stop_chunk,
            num_parts, position, scale, window, softcap,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_N, BLOCK_D, PAGE_TOKENS, K_BITS, V_BITS, SPAN,
        )  # fmt: skip

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
