"""Causal grouped-query attention over pages: online softmax (arXiv 2205.14135), split over long contexts.

The rows of a tile are the queries of one key head, a query's heads side by side: they all read the same keys. A decode
step has few tiles, so the keys of each are divided among programs, in parts whose size the device works out from the
lengths; the last program of a tile joins the parts in order. Logits are kept in units of log2.
"""

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.kernels.pages import GROUP, Pages
from polybit.kernels.triton.pages import arguments_of
from polybit.kernels.triton.reduction import MAX_SUMS, arrives_last, counters, num_at_once, num_processors, shared_bytes
from polybit.kernels.triton.rope import dense_heads
from polybit.kernels.triton.rows import load_rows, turn, values_of

LOG2_E = tl.constexpr(1.4426950408889634)
DECODE_QUERIES = 8  # steps of at most so many tokens a sequence divide their keys
MAX_PARTS = tl.constexpr(64)
MIN_PART_KEYS = tl.constexpr(128)


@triton.jit
def _tanh(x):
    """To fp32 precision near zero too, where 1 - exp(-2x) would have lost most of its digits."""
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    square = x * x
    near = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    return tl.where(tl.abs(x) < 0.25, x * near, tl.where(x < 0, -far, far))


@triton.jit
def capped(logits, softcap):
    """softcap * tanh(logits / softcap); as they are if it is None."""
    return logits if softcap is None else softcap * _tanh(logits / softcap)


@triton.jit
def _attend(
    q,
    accumulator,
    maximum,
    total,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_row,
    page_tokens,
    kv_head,
    position,
    first,
    stop,
    scale,
    window,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take in keys [first, stop). WHOLE_TILES: no tile of keys crosses a page. MASKED: not every row sees every key."""
    for start in range(first, stop, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        if WHOLE_TILES:
            page = tl.load(page_row + start // page_tokens).to(tl.int64)
            tile = (page * page_tokens + start % page_tokens) * NUM_KV_HEADS + kv_head
            row = tl.arange(0, BLOCK_N) * NUM_KV_HEADS
        else:
            page = tl.load(page_row + key // page_tokens, key < stop, other=0).to(tl.int64)
            tile, row = kv_head, (page * page_tokens + key % page_tokens) * NUM_KV_HEADS
        inside = None
        if MASKED:
            inside = key < stop
        rows, scales = load_rows(k_pages, k_scales, tile, row, inside, HEAD_DIM, BLOCK_D, K_BITS, SPAN)
        k = values_of(rows, scales, q.dtype, BLOCK_N, BLOCK_D, K_BITS)
        logits = capped(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, softcap) * LOG2_E
        if MASKED:
            visible = (key[None, :] <= position[:, None]) & (key < stop)[None, :]
            if window is not None:
                visible &= position[:, None] - key[None, :] < window
            logits = tl.where(visible, logits, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        base = new_maximum
        if MASKED:  # a row may have seen no key yet
            base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(logits - base[:, None])
        decay = tl.exp2(maximum - base)
        total = total * decay + tl.sum(weights, 1)
        accumulator *= decay[:, None]
        rows, scales = load_rows(v_pages, v_scales, tile, row, inside, HEAD_DIM, BLOCK_D, V_BITS, SPAN)
        v = values_of(rows, scales, q.dtype, BLOCK_N, BLOCK_D, V_BITS)
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
        maximum = new_maximum
    return accumulator, maximum, total


@triton.jit
def _join(parts, sums, first_part, num_parts, row, inside, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The parts of one tile, first to last, as one accumulator and its total; several are on their way at a time."""
    at = (first_part + tl.arange(0, MAX_PARTS))[:, None] * BLOCK_M + row[None, :]
    shown = (tl.arange(0, MAX_PARTS) < num_parts)[:, None] & inside[None, :]
    maxima = tl.load(sums + 2 * at, shown, other=float("-inf"), cache_modifier=".cg")
    maximum = tl.where(inside, tl.max(maxima, 0), 0.0)
    totals = tl.load(sums + 2 * at + 1, shown, other=0.0, cache_modifier=".cg")
    total = tl.sum(tl.exp2(maxima - maximum[None, :]) * totals, 0)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    at_once: tl.constexpr = num_at_once(BLOCK_M * BLOCK_D)
    for start in range(0, num_parts, at_once):
        for i in tl.static_range(at_once):
            there = inside & (start + i < num_parts)
            at_row = (first_part + start + i) * BLOCK_M + row
            weight = tl.exp2(tl.load(sums + 2 * at_row, there, other=float("-inf"), cache_modifier=".cg") - maximum)
            source = parts + at_row[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
            accumulator += weight[:, None] * tl.load(source, there[:, None], other=0.0, cache_modifier=".cg")
    return accumulator, total


@triton.jit(do_not_specialize=["page_tokens", "table_stride", "window", "max_parts"])
def _attention(
    q,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_table,
    query_starts,
    lengths,
    out,
    parts,
    sums,
    counters,
    page_tokens,
    table_stride,
    q_stride,
    max_parts,
    scale,
    window,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    SPAN: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    DIVIDED: tl.constexpr,
):
    tile, part = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(2)  # tiles with the most keys come first
    sequence, kv_head = tl.program_id(1) // NUM_KV_HEADS, tl.program_id(1) % NUM_KV_HEADS
    first_token, length = tl.load(query_starts + sequence), tl.load(lengths + sequence)
    num_queries = tl.load(query_starts + sequence + 1) - first_token
    if tile * BLOCK_M >= num_queries * GROUP:
        return
    row = tl.arange(0, BLOCK_M)
    query = (tile * BLOCK_M + row) // GROUP
    inside = query < num_queries
    position = length - num_queries + query
    last_query = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, num_queries - 1)
    first_position = length - num_queries + tile * BLOCK_M // GROUP
    stop = length - num_queries + last_query + 1
    start = 0
    if window is not None:
        start = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N

    num_parts = 1
    if DIVIDED:
        part_keys = tl.maximum(tl.cdiv(tl.cdiv(stop - start, max_parts), BLOCK_N) * BLOCK_N, MIN_PART_KEYS)
        num_parts = tl.cdiv(stop - start, part_keys)
        if part >= num_parts:
            return
        start += part * part_keys
        stop = tl.minimum(start + part_keys, stop)

    feature = tl.arange(0, BLOCK_D)[None, :]
    head = kv_head * GROUP + (tile * BLOCK_M + row) % GROUP
    at_row = (first_token + query).to(tl.int64) * q_stride + head * HEAD_DIM
    shown = inside[:, None] & (feature < HEAD_DIM)
    queries = tl.load(q + at_row[:, None] + feature, shown, other=0.0)
    if K_BITS < 16:
        queries = turn(queries, BLOCK_M, BLOCK_D, SPAN).to(queries.dtype)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    page_row = page_table + sequence.to(tl.int64) * table_stride
    masked_from = start
    if window is None:  # all rows see the tiles before the first row's own
        masked_from = tl.maximum(
            tl.minimum((first_position + 1) // BLOCK_N * BLOCK_N, stop // BLOCK_N * BLOCK_N), start
        )
        accumulator, maximum, total = _attend(
            queries, accumulator, maximum, total, k_pages, v_pages, k_scales, v_scales, page_row, page_tokens, kv_head,
            position, start, masked_from, scale, window, softcap,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, K_BITS, V_BITS, SPAN, WHOLE_TILES, MASKED=False,
        )  # fmt: skip
    accumulator, maximum, total = _attend(
        queries, accumulator, maximum, total, k_pages, v_pages, k_scales, v_scales, page_row, page_tokens, kv_head,
        position, masked_from, stop, scale, window, softcap,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, K_BITS, V_BITS, SPAN, WHOLE_TILES, MASKED=True,
    )  # fmt: skip

    if DIVIDED:  # noqa: SIM102 (this is known when compiling, the other is not)
        if num_parts > 1:
            tile_index = tl.program_id(1) * tl.num_programs(0) + tile
            first_part = tile_index.to(tl.int64) * max_parts
            at = (first_part + part) * BLOCK_M + row
            tl.store(parts + at[:, None] * BLOCK_D + feature, accumulator, inside[:, None], cache_modifier=".cg")
            tl.store(sums + 2 * at, maximum, inside, cache_modifier=".cg")
            tl.store(sums + 2 * at + 1, total, inside, cache_modifier=".cg")
            if not arrives_last(counters + tile_index, num_parts):
                return
            accumulator, total = _join(parts, sums, first_part, num_parts, row, inside, BLOCK_M, BLOCK_D)
    out_row = (first_token + query).to(tl.int64) * (NUM_KV_HEADS * GROUP * HEAD_DIM) + head * HEAD_DIM
    mixed = accumulator / total[:, None]
    if V_BITS < 16:
        mixed = turn(mixed.to(out.dtype.element_ty), BLOCK_M, BLOCK_D, SPAN)
    tl.store(out + out_row[:, None] + feature, mixed, shown)


@dataclass(frozen=True)
class Tiles:
    """Sizes of one launch. rows: queries times heads of a program; keys: taken in at a time."""

    rows: int
    keys: int
    warps: int
    stages: int


@functools.cache
def choose_tiles(num_rows: int, block_d: int, dtype: torch.dtype, shared: int) -> Tiles:
    """For tiles of up to `num_rows` rows and `shared` bytes of shared memory a program. Few sizes: each is compiled."""
    size = dtype.itemsize
    if size == 4:  # no tensor cores: exactness is what it is for
        rows, keys = (16 if num_rows <= 16 else 32), 32
    else:
        fitting = next((rows for rows in (16, 32, 64) if num_rows <= rows), 128 if block_d <= 128 else 64)
        rows, keys = fitting, 64
    held, stage = (rows * block_d + rows * keys) * size, 2 * keys * block_d * size
    return Tiles(
        rows,
        keys,
        warps=8 if rows * max(block_d, 128) >= 128 * 128 else 4,
        stages=max(1, min(3, (shared - held) // stage)),
    )


def max_parts(num_tiles: int, processors: int) -> int:
    """Programs that divide the keys of a tile, so that three a processor have work."""
    return 1 if num_tiles > MAX_SUMS else max(1, min(MAX_PARTS.value, 3 * processors // num_tiles))


def attention(
    q: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    max_queries: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The type of pages that are not quantized is q's."""
    q = dense_heads(q)
    device, (_, num_heads, head_dim) = q.device, q.shape
    keys, values = arguments_of(k_pages), arguments_of(v_pages)
    page_tokens, num_kv_heads = keys.page_tokens, keys.num_kv_heads
    group, pairs = num_heads // num_kv_heads, lengths.shape[0] * num_kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    tiles = choose_tiles(max_queries * group, block_d, q.dtype, shared_bytes(device))
    num_tiles = triton.cdiv(max_queries * group, tiles.rows)
    parts = max_parts(num_tiles * pairs, num_processors(device)) if max_queries <= DECODE_QUERIES else 1
    part_rows = num_tiles * pairs * parts * tiles.rows if parts > 1 else 0
    out = torch.empty(q.shape, dtype=q.dtype, device=device)
    _attention[num_tiles, pairs, parts](
        q,
        keys.rows,
        values.rows,
        keys.scales,
        values.scales,
        page_table,
        query_starts,
        lengths,
        out,
        torch.empty(part_rows * block_d, dtype=torch.float32, device=device),
        torch.empty(part_rows * 2, dtype=torch.float32, device=device),
        counters(device),
        page_tokens,
        page_table.stride(0),
        q.stride(0),
        parts,
        scale,
        window,
        softcap,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.keys,
        BLOCK_D=block_d,
        K_BITS=keys.bits,
        V_BITS=values.bits,
        SPAN=math.gcd(head_dim, GROUP),
        WHOLE_TILES=page_tokens % tiles.keys == 0,
        DIVIDED=max_queries <= DECODE_QUERIES,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out
