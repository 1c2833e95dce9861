"""The loops of quantization on a GPU: a program takes a tile of columns, and rows one after another where they must be.

Same results as `kernels/reference/rounding.py`, but for the order of sums. Nothing is read on the host. A row's loads
come before its arithmetic: they are done in the order written, and so it waits for memory once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.kernels.reference.groups import Rounded

NAME = "triton"
UPDATE_ROWS = 128  # a product of so many rows is bound by arithmetic, one of 32 by reading what it updates

ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to the nearest integer, half to even

ORDERED_COLUMNS = 32  # of a program whose rows follow one another: a column a thread, nothing to exchange
FREE_COLUMNS = 64
FACTORS_AT_ONCE = 8  # that a program tries on the rows it holds


@triton.jit
def _level(ratio, zero):
    """The nearest of the levels; the top one for 0 / 0 (a scale that underflowed), as the format wants."""
    inside = tl.where(ratio < zero - 1.0, tl.maximum(ratio, -zero), zero - 1.0)  # false of NaN
    return (inside + ROUNDER) - ROUNDER


@triton.jit
def _in_half(value):
    return value.to(tl.float16).to(tl.float32)


@triton.jit
def _unit(maximum):
    """The scale of code 0 under a group's maximum."""
    return _in_half(maximum.to(tl.float32) * (1 / 256))


@triton.jit
def _scale(code, unit):
    root = (code + 1).to(tl.float32)
    return _in_half(root * root * unit)


@triton.jit
def _round_tile(
    w,
    step,
    upper,
    upper_stride,
    q,
    dense,
    errors,
    column,
    num_columns,
    zero,
    NUM_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Column c of upper says what the errors above take from row c."""
    inside, row = column < num_columns, tl.arange(0, ROWS)
    found = tl.zeros([ROWS, BLOCK_N], tl.float32)  # errors so far
    for c in range(NUM_ROWS):
        at = c * num_columns + column
        shares = tl.load(upper + row * upper_stride + c, row < NUM_ROWS, other=0.0)
        pivot, value = tl.load(upper + c * upper_stride + c), tl.load(w + at, inside, other=0.0)
        value -= tl.sum(shares[:, None] * found, 0)
        level = _level(tl.div_rn(value, step), zero)
        kept = _in_half(level * step)
        error = tl.div_rn(value - kept, pivot + tl.zeros_like(value))
        found = tl.where((row == c)[:, None], error[None, :], found)
        tl.store(q + at, (level + zero).to(tl.uint8), inside)
        tl.store(dense + at, kept, inside)
        tl.store(errors + at, error, inside)


@triton.jit
def _round_rows(
    w,
    scale,
    upper,
    upper_stride,
    q,
    dense,
    errors,
    num_columns,
    zero,
    NUM_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.load(scale + column, column < num_columns, other=1.0)
    _round_tile(
        w, step, upper, upper_stride, q, dense, errors, column, num_columns, zero, NUM_ROWS, ROWS, BLOCK_N
    )  # fmt: skip


@triton.jit
def _round_fitted(
    w,
    best,
    maxima,
    tried_codes,
    upper,
    upper_stride,
    q,
    codes,
    scale_max,
    dense,
    errors,
    num_columns,
    zero,
    NUM_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """As _round_rows under candidate `best` of maxima [C] and tried_codes [C, N], which it hands on."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, chosen = column < num_columns, tl.load(best)
    maximum, code = tl.load(maxima + chosen), tl.load(tried_codes + chosen * num_columns + column, inside, other=0)
    tl.store(codes + column, code, inside)
    if tl.program_id(0) == 0:
        tl.store(scale_max, maximum)
    step = _scale(code.to(tl.int32), _unit(maximum))
    _round_tile(
        w, step, upper, upper_stride, q, dense, errors, column, num_columns, zero, NUM_ROWS, ROWS, BLOCK_N
    )  # fmt: skip


@triton.jit
def _nearest(wanted, unit):
    """The code whose scale lies nearest to what is wanted, the lower of two."""
    every = _scale(tl.arange(0, 16), unit)
    above = tl.minimum(tl.maximum(tl.sum((every[:, None] < wanted[None, :]).to(tl.int32), 0), 1), 15)
    is_below = wanted - _scale(above - 1, unit) <= _scale(above, unit) - wanted
    return above - is_below.to(tl.int32)


@triton.jit(do_not_specialize_on_alignment=["scale_max"])
def _descend_group(
    residual,
    dense,
    q,
    codes,
    scale_max,
    h,
    h_stride,
    moved,
    num_columns,
    zero,
    NUM_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A row's part of h (symmetric) times what all rows have moved by now is what its residual has lost."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, row = column < num_columns, tl.arange(0, ROWS)
    unit = _unit(tl.load(scale_max))
    levels = tl.zeros([ROWS, BLOCK_N], tl.float32)
    slope = tl.zeros([BLOCK_N], tl.float32)
    for c in range(NUM_ROWS):
        at = c * num_columns + column
        level = tl.load(q + at, inside, other=0).to(tl.float32) - zero
        slope += level * tl.load(residual + at, inside, other=0.0)
        levels = tl.where((row == c)[:, None], level[None, :], levels)
    curvature = tl.zeros([BLOCK_N], tl.float32)
    for c in range(NUM_ROWS):
        shares = tl.load(h + c * h_stride + row, row < NUM_ROWS, other=0.0)
        level = tl.load(q + c * num_columns + column, inside, other=0).to(tl.float32) - zero
        curvature += level * tl.sum(shares[:, None] * levels, 0)
    is_curved = curvature > 0
    wanted = _scale(tl.load(codes + column, inside, other=0).to(tl.int32), unit)
    wanted += tl.where(is_curved, tl.div_rn(slope, tl.where(is_curved, curvature, 1.0)), 0.0)
    code = _nearest(wanted, unit)
    tl.store(codes + column, code.to(tl.uint8), inside)
    step = _scale(code, unit)
    by = tl.zeros([ROWS, BLOCK_N], tl.float32)  # how much each row has moved, from the new scale's values on
    for c in range(NUM_ROWS):
        at = c * num_columns + column
        level = tl.load(q + at, inside, other=0).to(tl.float32) - zero
        rescaled = _in_half(level * step) - tl.load(dense + at, inside, other=0.0)
        by = tl.where((row == c)[:, None], rescaled[None, :], by)
    for c in range(NUM_ROWS):
        at = c * num_columns + column
        shares = tl.load(h + c * h_stride + row, row < NUM_ROWS, other=0.0)
        pivot, left = tl.load(h + c * h_stride + c), tl.load(residual + at, inside, other=0.0)
        before = tl.load(dense + at, inside, other=0.0)
        level = tl.load(q + at, inside, other=0).to(tl.float32) - zero
        left -= tl.sum(shares[:, None] * by, 0)
        best = _in_half(level * step) + tl.div_rn(left, pivot + tl.zeros_like(left))
        level = _level(tl.div_rn(best, step), zero)
        kept = _in_half(level * step)
        by = tl.where((row == c)[:, None], (kept - before)[None, :], by)
        tl.store(q + at, (level + zero).to(tl.uint8), inside)
        tl.store(dense + at, kept, inside)
        tl.store(moved + at, kept - before, inside)


@triton.jit
def _scale_costs(
    x,
    row_weights,
    column_weights,
    maxima,
    parts,
    codes,
    num_columns,
    num_candidates,
    zero,
    NUM_ROWS: tl.constexpr,
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
    base = tl.max(tl.abs(value), 0) / (zero - 0.5)
    unit = _unit(tl.load(maxima + number))
    first = tl.minimum(tl.sum((_scale(tl.arange(0, 16), unit)[:, None] < base[None, :]).to(tl.int32), 0), 15)
    best, chosen = tl.full([BLOCK_N], float("inf"), tl.float32), first
    for offset in tl.static_range(WINDOW):
        code = tl.maximum(first - offset, 0)
        scale = _scale(code, unit)
        inverse = tl.where(scale > 0.0, 1.0 / tl.where(scale > 0.0, scale, 1.0), 0.0)
        error = _level(value * inverse[None, :], zero) * scale[None, :] - value
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
    zero,
    NUM_ROWS: tl.constexpr,
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
        error = tl.abs(_level(ratio, zero) - ratio)
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
        _zero(bits),
        NUM_ROWS=num_rows,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_N=FREE_COLUMNS,
        AT_ONCE=FACTORS_AT_ONCE,
        num_warps=4,
    )
    return parts.sum(1)


def round_rows(w: Tensor, scale: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """w [R, N], scale [N], upper [R, R] -> q [R, N] uint8, dense [R, N], errors [R, N]."""
    num_columns, q = w.shape[1], torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    dense, errors = torch.empty_like(w), torch.empty_like(w)
    _round_rows[(triton.cdiv(num_columns, ORDERED_COLUMNS),)](
        w.contiguous(), scale, upper, upper.stride(0), q, dense, errors, num_columns, _zero(bits), **_ordered(len(w))
    )
    return q, dense, errors


def _ordered(num_rows: int) -> dict[str, int]:
    """Of a program whose rows follow one another."""
    rows = triton.next_power_of_2(num_rows)
    return {"NUM_ROWS": num_rows, "ROWS": rows, "BLOCK_N": ORDERED_COLUMNS, "num_warps": 1}


def _zero(bits: int) -> float:
    """What is level 0 among integers; no constant of a kernel, which would be compiled for every number of bits."""
    return float(1 << (bits - 1))


def scale_costs(
    x: Tensor, row_weights: Tensor, column_weights: Tensor, table: Tensor, bits: int, window: int
) -> tuple[Tensor, Tensor]:
    """x [G, R, N], row_weights [G, R], column_weights [N], table [G, C, 16] -> costs [G, C] fp64, codes [G, C, N]."""
    maxima = table[..., 15].contiguous()  # what all of a table's scales follow from, exactly
    return _scale_costs_under(maxima, x.contiguous(), row_weights.contiguous(), column_weights, bits, window)


def _scale_costs_under(
    maxima: Tensor, x: Tensor, row_weights: Tensor, column_weights: Tensor, bits: int, window: int
) -> tuple[Tensor, Tensor]:
    """maxima [G, C] -> as scale_costs."""
    num_groups, num_rows, num_columns = x.shape
    num_candidates, tiles = maxima.shape[1], triton.cdiv(num_columns, FREE_COLUMNS)
    parts = torch.empty(num_groups, num_candidates, tiles, device=x.device)
    codes = torch.empty(num_groups, num_candidates, num_columns, dtype=torch.uint8, device=x.device)
    _scale_costs[(tiles, num_candidates, num_groups)](
        x,
        row_weights,
        column_weights.contiguous(),
        maxima,
        parts,
        codes,
        num_columns,
        num_candidates,
        _zero(bits),
        NUM_ROWS=num_rows,
        WINDOW=window,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK_N=FREE_COLUMNS,
        num_warps=4,
    )
    return parts.sum(2, dtype=torch.float64), codes


def fit_and_round(
    w: Tensor, row_weights: Tensor, column_weights: Tensor, shares: Tensor, upper: Tensor, bits: int, window: int
) -> Rounded:
    num_columns, half_step = w.shape[1], _zero(bits) - 0.5
    maxima = (shares * (torch.linalg.vector_norm(w, torch.inf) / half_step)).half()
    costs, tried = _scale_costs_under(maxima[None], w[None], row_weights[None], column_weights, bits, window)
    q = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    found = Rounded(q, q.new_empty(num_columns), maxima.new_empty(()), torch.empty_like(w), torch.empty_like(w))
    _round_fitted[(triton.cdiv(num_columns, ORDERED_COLUMNS),)](
        w, costs.argmin(), maxima, tried, upper, upper.stride(0), *found, num_columns, _zero(bits), **_ordered(len(w))
    )
    return found


def descend_group(
    residual: Tensor, dense: Tensor, q: Tensor, codes: Tensor, scale_max: Tensor, h: Tensor, bits: int
) -> Tensor:
    num_columns, moved = dense.shape[1], torch.empty_like(dense)
    _descend_group[(triton.cdiv(num_columns, ORDERED_COLUMNS),)](
        residual,
        dense,
        q,
        codes,
        scale_max,
        h,
        h.stride(0),
        moved,
        num_columns,
        _zero(bits),
        **_ordered(len(dense)),
    )
    return moved
