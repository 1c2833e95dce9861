"""Rows of pages, in and out of registers: a row is a head of a token, as it is (16 bits) or quantized.

What kernels/pages.py defines, with groups of SPAN features. BITS 16 stands for the pages' own type.
"""

import triton
import triton.language as tl

LEAST_DOT = tl.constexpr(16)  # rows and columns that a tensor core takes at least
HALVES_FROM_1024 = tl.constexpr(0x6400)  # as an fp16's bits, 1024; a code below 1024 goes into the last of them


@triton.jit
def turn(x, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, SPAN: tl.constexpr):
    """Walsh-Hadamard transform of each group of x [ROWS, BLOCK_D], fp32."""
    parity = tl.arange(0, SPAN)[:, None] & tl.arange(0, SPAN)[None, :]
    parity ^= parity >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    signs = 1.0 - 2.0 * (parity & 1).to(tl.float32)
    count: tl.constexpr = ROWS * BLOCK_D // SPAN
    groups = tl.reshape(x, [count, SPAN])
    if count < LEAST_DOT:
        turned = tl.sum(groups.to(tl.float32)[:, :, None] * signs[None, :, :], 1)
    else:
        turned = tl.dot(groups, signs.to(x.dtype), input_precision="ieee")
    return tl.reshape(turned * SPAN**-0.5, [ROWS, BLOCK_D])


@triton.jit
def load_rows(
    pages,
    scales,
    first,
    row,
    inside,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Rows first + row [R], those `inside` (None: all), as they lie there: values or words, and their scales."""
    if BITS == 16:
        feature = tl.arange(0, BLOCK_D)[None, :]
        at = pages + first * HEAD_DIM + (row[:, None] * HEAD_DIM + feature)
        steps = 0
        if inside is not None:
            rows = tl.load(at, inside[:, None] & (feature < HEAD_DIM), other=0.0)
        elif HEAD_DIM == BLOCK_D:
            rows = tl.load(at)
        else:
            rows = tl.load(at, feature < HEAD_DIM, other=0.0)
    else:
        num_groups: tl.constexpr = HEAD_DIM // SPAN
        num_words: tl.constexpr = SPAN * BITS // 32
        group = tl.arange(0, BLOCK_D // SPAN)[None, :]
        shown = group < num_groups
        if inside is not None:
            shown = inside[:, None] & shown
        at_group = row[:, None] * num_groups + group
        at_word = at_group[:, :, None] * num_words + tl.arange(0, num_words)[None, None, :]
        rows = tl.load(pages + first * (num_groups * num_words) + at_word, shown[:, :, None], other=0)
        steps = tl.load(scales + first * num_groups + at_group, shown, other=0.0)
    return rows, steps


@triton.jit
def values_of(rows, scales, dtype: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BITS: tl.constexpr):
    """What `load_rows` gave as numbers [ROWS, BLOCK_D]; quantized ones stay turned."""
    values = rows
    if BITS < 16:
        shifts = tl.arange(0, 32 // BITS) * BITS
        codes = (rows[:, :, :, None] >> shifts[None, None, None, :]) & ((1 << BITS) - 1)
        above = (codes | HALVES_FROM_1024).to(tl.int16).to(tl.float16, bitcast=True)
        levels = above - (1024.0 + (1 << (BITS - 1)))
        if dtype == tl.float16:
            values = levels * scales[:, :, None, None]
        else:
            values = (levels.to(tl.float32) * scales.to(tl.float32)[:, :, None, None]).to(dtype)
        values = tl.reshape(values, [ROWS, BLOCK_D])
    return values


@triton.jit
def store_rows(
    pages,
    scales,
    first,
    row,
    inside,
    values,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BITS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Values [ROWS, BLOCK_D], not turned, into rows first + row [ROWS] that are `inside` -> what readers will find."""
    if BITS == 16:
        feature = tl.arange(0, BLOCK_D)[None, :]
        found = values.to(pages.dtype.element_ty)
        at = pages + first * HEAD_DIM + (row[:, None] * HEAD_DIM + feature)
        tl.store(at, found, inside[:, None] & (feature < HEAD_DIM))
    else:
        num_groups: tl.constexpr = HEAD_DIM // SPAN
        num_words: tl.constexpr = SPAN * BITS // 32
        words, steps = _quantize(turn(values, ROWS, BLOCK_D, SPAN), ROWS, BLOCK_D, BITS, SPAN)
        group = tl.arange(0, BLOCK_D // SPAN)[None, :]
        shown = inside[:, None] & (group < num_groups)
        at_group = row[:, None] * num_groups + group
        at_word = at_group[:, :, None] * num_words + tl.arange(0, num_words)[None, None, :]
        tl.store(pages + first * (num_groups * num_words) + at_word, words, shown[:, :, None])
        tl.store(scales + first * num_groups + at_group, steps, shown)
        found = values_of(words, steps, values.dtype, ROWS, BLOCK_D, BITS)
    return found


@triton.jit
def _quantize(turned, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr):
    """[ROWS, BLOCK_D] fp32 -> words [ROWS, groups, words a group] and scales [ROWS, groups]"""
    groups = tl.reshape(turned, [ROWS, BLOCK_D // SPAN, SPAN])
    high, low = tl.max(groups, 2), tl.min(groups, 2)
    half: tl.constexpr = 1 << (BITS - 1)
    scales = (tl.where(high >= -low, high, low) * (-1.0 / half)).to(tl.float16)
    steps = scales.to(tl.float32)[:, :, None]
    levels = tl.where(steps == 0.0, 0.0, groups / tl.where(steps == 0.0, 1.0, steps))
    codes = tl.clamp(tl.floor(levels + 0.5) + half, 0.0, 2.0 * half - 1.0).to(tl.int32)
    each: tl.constexpr = 32 // BITS
    codes = tl.reshape(codes, [ROWS, BLOCK_D // SPAN, SPAN // each, each])
    shifts = tl.arange(0, each) * BITS
    return tl.sum(codes << shifts[None, None, None, :], 3), scales
