"""Quantized keys and values from pages straight into the registers that a tensor core reads them from.

Every warp has KEYS of a chunk for itself, the first axis of what is given here; nothing passes through shared memory.
A thread keeps what it loaded, so features come in an order of their own: `in_order_of_keys` brings a query into the one
of keys, `in_order_of_features` brings back what was mixed from values. A core that multiplies by [K, N] wants two
numbers of one column in a register: of keys that is two features of a key, of values a feature of two keys. Quads of
threads share a column, eight quads a row.

Two codes at a time become fp16 without a conversion: in its last bits, a code adds itself to 1024. Axes are added by
reshaping: through `x[:, None]` the compiler does not keep what is held where.
"""

import triton
import triton.language as tl

from polybit.kernels.triton.rows import HALVES_FROM_1024

QUAD, QUADS = tl.constexpr(4), tl.constexpr(8)


@triton.constexpr_function
def vector(block_d, bits, span, threads):
    """Words that a thread loads at once, all of one group, where so many threads share a row."""
    return max(1, min(4, block_d * bits // 32 // threads, span * bits // 32))


@triton.constexpr_function
def sharing(block_d, bits, threads):
    """Threads that share a row, of as many as could."""
    return min(threads, block_d * bits // 32)


@triton.jit
def load_words(
    pages,
    scales,
    first,
    row,
    inside,
    word,
    HEAD_DIM: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """VECTOR words from `word` on of each row first + row, those `inside` -> words [N, VECTOR] and scales [N]"""
    row_words: tl.constexpr = HEAD_DIM * BITS // 32
    row_groups: tl.constexpr = HEAD_DIM // SPAN
    shown = inside & (word < row_words)
    at = (row * row_words + word)[:, None] + tl.arange(0, VECTOR)[None, :]
    words = tl.load(pages + first * row_words + at, shown[:, None], other=0)
    group = row * row_groups + word // (SPAN * BITS // 32)
    group = tl.max_contiguous(group, 1)  # or a thread would load several, which belong to others
    steps = tl.load(scales + first * row_groups + group, shown, other=0.0)
    return words, steps


@triton.jit
def _numbers(pairs, scales, dtype: tl.constexpr, BITS: tl.constexpr):
    """Codes in both halves of `pairs` [N, C], scales [N, 1 or C, 2] -> [N, C, codes a half, 2]"""
    mask: tl.constexpr = ((1 << BITS) - 1) * 0x10001
    count: tl.constexpr = pairs.shape[0]
    words: tl.constexpr = pairs.shape[1]
    shifts = tl.arange(0, 16 // BITS) * BITS
    codes = ((tl.reshape(pairs, [count, words, 1]) >> shifts[None, None, :]) & mask) | (HALVES_FROM_1024 * 0x10001)
    half = (tl.arange(0, 2) * 16)[None, None, None, :]
    halves = (tl.reshape(codes, [count, words, 16 // BITS, 1]) >> half).to(tl.int16)
    levels = halves.to(tl.float16, bitcast=True) - (1024.0 + (1 << (BITS - 1)))
    if dtype != tl.float16:
        levels, scales = levels.to(tl.float32), scales.to(tl.float32)
    return (levels * scales).to(dtype)


@triton.jit
def key_places(BLOCK_D: tl.constexpr, KEYS: tl.constexpr, WARPS: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr):
    """-> key of the chunk and first word, of every load. Slowest first: the rest, warp, key of 8, thread of 4"""
    threads: tl.constexpr = sharing(BLOCK_D, BITS, QUAD)
    words: tl.constexpr = vector(BLOCK_D, BITS, SPAN, QUAD)
    count: tl.constexpr = BLOCK_D * BITS // 32 // words * KEYS * WARPS
    place = tl.arange(0, count)
    thread, place = place % threads, place // threads
    key, place = place % QUADS, place // QUADS
    warp, place = place % WARPS, place // WARPS
    key += place % (KEYS // QUADS) * QUADS + warp * KEYS
    return key, (place // (KEYS // QUADS) * threads + thread) * words


@triton.jit
def keys_of(
    words,
    scales,
    dtype: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """-> [WARPS, BLOCK_D, KEYS]"""
    threads: tl.constexpr = sharing(BLOCK_D, BITS, QUAD)
    each: tl.constexpr = vector(BLOCK_D, BITS, SPAN, QUAD)
    numbers = _numbers(words, tl.reshape(scales, [scales.shape[0], 1, 1, 1]), dtype, BITS)
    pairs: tl.constexpr = each * 16 // BITS
    rest: tl.constexpr = BLOCK_D // (threads * pairs * 2)
    numbers = tl.reshape(numbers, [rest, KEYS // QUADS, WARPS, QUADS, threads, pairs, 2])
    return tl.reshape(tl.permute(numbers, 2, 0, 5, 4, 6, 1, 3), [WARPS, BLOCK_D, KEYS])


@triton.jit
def in_order_of_keys(queries, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr):
    """[ROWS, BLOCK_D], whose features come as in the keys of `keys_of`."""
    threads: tl.constexpr = sharing(BLOCK_D, BITS, QUAD)
    each: tl.constexpr = vector(BLOCK_D, BITS, SPAN, QUAD)
    codes: tl.constexpr = 16 // BITS
    features = tl.reshape(queries, [ROWS, BLOCK_D // (threads * each * 2 * codes), threads, each, 2, codes])
    return tl.reshape(tl.permute(features, 0, 1, 3, 5, 2, 4), [ROWS, BLOCK_D])


@triton.jit
def value_places(
    BLOCK_D: tl.constexpr, KEYS: tl.constexpr, WARPS: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr
):
    """-> even key of the chunk and first word, of every load. Slowest first: the rest, warp, thread of 8, pair of 4"""
    threads: tl.constexpr = sharing(BLOCK_D, BITS, QUADS)
    words: tl.constexpr = vector(BLOCK_D, BITS, SPAN, QUADS)
    count: tl.constexpr = BLOCK_D * BITS // 32 // words * (KEYS // 2) * WARPS
    place = tl.arange(0, count)
    key, place = place % QUAD * 2, place // QUAD
    thread, place = place % threads, place // threads
    warp, place = place % WARPS, place // WARPS
    key += place % (KEYS // QUADS) * QUADS + warp * KEYS
    return key, (place // (KEYS // QUADS) * threads + thread) * words


@triton.jit
def values_of(
    even,
    odd,
    even_scales,
    odd_scales,
    dtype: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Words of even keys and of odd ones, and their scales -> [WARPS, KEYS, BLOCK_D]"""
    threads: tl.constexpr = sharing(BLOCK_D, BITS, QUADS)
    each: tl.constexpr = vector(BLOCK_D, BITS, SPAN, QUADS)
    codes: tl.constexpr = 16 // BITS
    count: tl.constexpr = even.shape[0]
    half = (tl.arange(0, 2) * 16)[None, None, :]
    even, odd = tl.reshape(even, [count, each, 1]), tl.reshape(odd, [count, each, 1])
    pairs = tl.reshape(((even >> half) & 0xFFFF) | ((odd >> half) << 16), [count, each * 2])
    is_odd = tl.arange(0, 2)[None, None, None, :] == 1
    even_scales, odd_scales = tl.reshape(even_scales, [count, 1, 1, 1]), tl.reshape(odd_scales, [count, 1, 1, 1])
    scales = tl.where(is_odd, odd_scales, even_scales)
    numbers = _numbers(pairs, scales, dtype, BITS)
    rest: tl.constexpr = BLOCK_D // (threads * each * 2 * codes)
    numbers = tl.reshape(numbers, [rest, KEYS // QUADS, WARPS, threads, QUAD, each * 2 * codes, 2])
    return tl.reshape(tl.permute(numbers, 2, 1, 4, 6, 0, 5, 3), [WARPS, KEYS, BLOCK_D])


@triton.jit
def in_order_of_features(mixed, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr):
    """[ROWS, BLOCK_D] mixed from the values of `values_of`, with features as they are numbered."""
    threads: tl.constexpr = sharing(BLOCK_D, BITS, QUADS)
    run: tl.constexpr = vector(BLOCK_D, BITS, SPAN, QUADS) * 32 // BITS
    found = tl.reshape(mixed, [ROWS, BLOCK_D // (threads * run), run, threads])
    return tl.reshape(tl.permute(found, 0, 1, 3, 2), [ROWS, BLOCK_D])
