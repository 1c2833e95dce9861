"""The loops of quantization on a GPU: a program takes a tile of columns, and rows one after another where they must be.

Same results as `kernels/reference/rounding.py`, but for the order of sums. Nothing is read on the host.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NAME = "triton"

ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to the nearest integer, half to even

ORDERED_COLUMNS = 32  # of a program whose rows follow one another: a column a thread, nothing to exchange
FREE_COLUMNS = 64
FACTORS_AT_ONCE = 8  # that a program tries on the rows it holds


@triton.jit
def _level(ratio, BITS: tl.constexpr):
    """The nearest of the levels; the top one for 0 / 0 (a scale that underflowed), as the format wants."""
    zero: tl.constexpr = 1 << (BITS - 1)
    inside = tl.where(ratio < zero - 1.0, tl.maximum(ratio, -1.0 * zero), zero - 1.0)  # false of NaN
    return (inside + ROUNDER) - ROUNDER


@triton.jit
def _round_rows(
    w,
    scale,
    lower,
    q,
    dense,
    errors,
    num_columns,
    NUM_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """lower is the transpose of upper: its row c says what the errors above take from row c."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < num_columns
    row = tl.arange(0, ROWS)
    step = tl.load(scale + column, inside, other=1.0)
    found = tl.zeros([ROWS, BLOCK_N], tl.float32)  # errors so far
    for c in range(NUM_ROWS):
        shares = tl.load(lower + c * NUM_ROWS + row, row < NUM_ROWS, other=0.0)
        at = c * num_columns + column
        value = tl.load(w + at, inside, other=0.0) - tl.sum(shares[:, None] * found, 0)
        level = _level(tl.div_rn(value, step), BITS)
        kept = (level * step).to(tl.float16).to(tl.float32)
        error = tl.div_rn(value - kept, tl.load(lower + c * NUM_ROWS + c) + tl.zeros_like(value))
        found = tl.where((row == c)[:, None], error[None, :], found)
        tl.store(q + at, (level + (1 << (BITS - 1))).to(tl.uint8), inside)
        tl.store(dense + at, kept, inside)
        tl.store(errors + at, error, inside)


@triton.jit
def _descend_rows(
    residual,
    dense,
    scale,
    h,
    q,
    num_columns,
    NUM_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < num_columns
    row = tl.arange(0, ROWS)
    step = tl.load(scale + column, inside, other=1.0)
    moved = tl.zeros([ROWS, BLOCK_N], tl.float32)  # by how much, so far
    for c in range(NUM_ROWS):
        shares = tl.load(h + c * NUM_ROWS + row, row < NUM_ROWS, other=0.0)
        at = c * num_columns + column
        left = tl.load(residual + at, inside, other=0.0) - tl.sum(shares[:, None] * moved, 0)
        before = tl.load(dense + at, inside, other=0.0)
        wanted = before + tl.div_rn(left, tl.load(h + c * NUM_ROWS + c) + tl.zeros_like(left))
        level = _level(tl.div_rn(wanted, step), BITS)
        kept = (level * step).to(tl.float16).to(tl.float32)
        moved = tl.where((row == c)[:, None], (kept - before)[None, :], moved)
        tl.store(q + at, (level + (1 << (BITS - 1))).to(tl.uint8), inside)
        tl.store(dense + at, kept, inside)


@triton.jit
def _scale_costs(
    x,
    row_weights,
    column_weights,
    table,
    parts,
    codes,
    num_columns,
    num_candidates,
    NUM_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One candidate of one group on one tile: parts [G, C, tiles], each column's best code."""
    tile, candidate, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    column, row = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, ROWS)
    inside = column < num_columns
    at = group * NUM_ROWS * num_columns + row[:, None] * num_columns + column[None, :]
    value = tl.load(x + at, (row < NUM_ROWS)[:, None] & inside[None, :], other=0.0)
    weight = tl.load(row_weights + group * NUM_ROWS + row, row < NUM_ROWS, other=0.0)
    number = group * num_candidates + candidate
    base = tl.max(tl.abs(value), 0) / ((1 << (BITS - 1)) - 0.5)
    scales = tl.load(table + number * 16 + tl.arange(0, 16))
    first = tl.minimum(tl.sum((scales[:, None] < base[None, :]).to(tl.int32), 0), 15)
    best, chosen = tl.full([BLOCK_N], float("inf"), tl.float32), first
    for offset in tl.static_range(WINDOW):
        code = tl.maximum(first - offset, 0)
        scale = tl.load(table + number * 16 + code)
        inverse = tl.where(scale > 0.0, 1.0 / tl.where(scale > 0.0, scale, 1.0), 0.0)
        error = _level(value * inverse[None, :], BITS) * scale[None, :] - value
        cost = tl.sum(weight[:, None] * (error * error), 0)
        chosen = tl.where(cost < best, code, chosen)
        best = tl.minimum(cost, best)
    best *= tl.load(column_weights + column, inside, other=0.0)
    tl.store(parts + number * tl.num_programs(0) + tile, tl.sum(best, 0))
    tl.store(codes + number * num_columns + column, chosen.to(tl.uint8), inside)


@triton.jit
def _factor_errors(
    x,
    trial,
    factors,
    parts,
    num_columns,
    num_factors,
    NUM_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """parts [factors, tiles] fp64. Sums are in units of a column's scale, which keeps division out of the rows."""
    tile = tl.program_id(0)
    column, row = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, ROWS)
    inside = column < num_columns
    at = row[:, None] * num_columns + column[None, :]
    value = tl.load(x + at, (row < NUM_ROWS)[:, None] & inside[None, :], other=0.0)
    base = tl.load(trial + column, inside, other=1.0)
    first = tl.program_id(1) * AT_ONCE
    for i in range(first, tl.minimum(first + AT_ONCE, num_factors)):
        scale = base * tl.load(factors + i)
        ratio = value * (1.0 / scale)[None, :]
        error = tl.abs(_level(ratio, BITS) - ratio)
        sums = tl.sum(error * error * error * tl.sqrt(error), 0).to(tl.float64)
        wide = scale.to(tl.float64)
        total = tl.sum(tl.where(inside, sums * (wide * wide * wide * tl.sqrt(wide)), 0.0), 0)
        tl.store(parts + i * tl.num_programs(0) + tile, total)


def factor_errors(x: Tensor, trial: Tensor, factors: Tensor, bits: int) -> Tensor:
    """x [R, N], trial [N], factors [C] -> [C] fp64: the sum of |round(x / s) s - x|^3.5 with s = trial * factor."""
    (num_rows, num_columns), num_factors = x.shape, len(factors)
    tiles = triton.cdiv(num_columns, FREE_COLUMNS)
    parts = torch.empty(num_factors, tiles, dtype=torch.float64, device=x.device)
    _factor_errors[(tiles, triton.cdiv(num_factors, FACTORS_AT_ONCE))](
        x.contiguous(),
        trial,
        factors,
        parts,
        num_columns,
        num_factors,
        NUM_ROWS=num_rows,
        BITS=bits,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_N=FREE_COLUMNS,
        AT_ONCE=FACTORS_AT_ONCE,
        num_warps=4,
    )
    return parts.sum(1)


def round_rows(w: Tensor, scale: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """w [R, N], scale [N], upper [R, R] -> q [R, N] uint8, dense [R, N], errors [R, N]."""
    num_rows, num_columns = w.shape
    q, dense, errors = (
        torch.empty(w.shape, dtype=torch.uint8, device=w.device),
        torch.empty_like(w),
        torch.empty_like(w),
    )
    _round_rows[(triton.cdiv(num_columns, ORDERED_COLUMNS),)](
        w.contiguous(),
        scale,
        upper.T.contiguous(),
        q,
        dense,
        errors,
        num_columns,
        NUM_ROWS=num_rows,
        BITS=bits,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_N=ORDERED_COLUMNS,
        num_warps=1,
    )
    return q, dense, errors


def scale_costs(
    x: Tensor, row_weights: Tensor, column_weights: Tensor, table: Tensor, bits: int, window: int
) -> tuple[Tensor, Tensor]:
    """x [G, R, N], row_weights [G, R], column_weights [N], table [G, C, 16] -> costs [G, C] fp64, codes [G, C, N]."""
    num_groups, num_rows, num_columns = x.shape
    num_candidates, tiles = table.shape[1], triton.cdiv(num_columns, FREE_COLUMNS)
    parts = torch.empty(num_groups, num_candidates, tiles, device=x.device)
    codes = torch.empty(num_groups, num_candidates, num_columns, dtype=torch.uint8, device=x.device)
    _scale_costs[(tiles, num_candidates, num_groups)](
        x.contiguous(),
        row_weights.contiguous(),
        column_weights.contiguous(),
        table,
        parts,
        codes,
        num_columns,
        num_candidates,
        NUM_ROWS=num_rows,
        BITS=bits,
        WINDOW=window,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_N=FREE_COLUMNS,
        num_warps=4,
    )
    return parts.sum(2, dtype=torch.float64), codes


def descend_rows(residual: Tensor, dense: Tensor, scale: Tensor, h: Tensor, bits: int) -> Tensor:
    """residual and dense [R, N], the latter updated, scale [N], h [R, R] -> q [R, N] uint8."""
    num_rows, num_columns = dense.shape
    q = torch.empty(dense.shape, dtype=torch.uint8, device=dense.device)
    _descend_rows[(triton.cdiv(num_columns, ORDERED_COLUMNS),)](
        residual.contiguous(),
        dense,
        scale,
        h,
        q,
        num_columns,
        NUM_ROWS=num_rows,
        BITS=bits,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_N=ORDERED_COLUMNS,
        num_warps=1,
    )
    return q
