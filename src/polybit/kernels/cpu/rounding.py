"""The loops of quantization in Numba: tiles of columns over the cores, SIMD across the columns of a tile.

Same arithmetic as `kernels/reference/rounding.py`, which it is tested against.
"""

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels.cpu.bits import ROUNDER
from polybit.kernels.cpu.threads import cores
from polybit.kernels.reference import groups

NAME = "numba"
UPDATE_ROWS = 1

TILE = 64  # columns: 64 x 128 rows of fp32 is 32 KB, a first-level cache
HALF_ROUNDER = np.float32(0.75)  # likewise to a multiple of 2^-24, the spacing of fp16 subnormals
HALF_NORMAL = np.float32(2.0**-14)  # the smallest normal fp16

Floats = NDArray[np.float32]


def factor_errors(x: Tensor, trial: Tensor, factors: Tensor, bits: int) -> Tensor:
    """x [R, N], trial [N], factors [C] -> [C] fp64: the sum of |round(x / s) s - x|^3.5 with s = trial * factor."""
    with cores():
        errors = _factor_errors(x.numpy(), trial.numpy(), factors.numpy(), np.float32(1 << (bits - 1)))
    return torch.from_numpy(errors)


def round_rows(w: Tensor, scale: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """w [R, N] (destroyed), scale [N], upper [R, R] -> q [R, N] uint8, dense [R, N], errors [R, N]."""
    q, dense, errors = torch.empty(w.shape, dtype=torch.uint8), torch.empty_like(w), torch.empty_like(w)
    zero = np.float32(1 << (bits - 1))
    with cores():
        _round_rows(w.numpy(), scale.numpy(), upper.numpy(), zero, q.numpy(), dense.numpy(), errors.numpy())
    return q, dense, errors


def scale_costs(
    x: Tensor, row_weights: Tensor, column_weights: Tensor, table: Tensor, bits: int, window: int
) -> tuple[Tensor, Tensor]:
    """x [G, R, N], row_weights [G, R], column_weights [N], table [G, C, 16] -> costs [G, C] fp64, codes [G, C, N]."""
    codes = torch.empty(*table.shape[:2], x.shape[2], dtype=torch.uint8)
    columns, zero = column_weights.numpy(), np.float32(1 << (bits - 1))
    with cores():
        costs = [
            torch.from_numpy(
                _scale_costs(rows.numpy(), weights.numpy(), columns, scales.numpy(), zero, window, best.numpy())
            )
            for rows, weights, scales, best in zip(x, row_weights, table, codes, strict=True)
        ]
    return torch.stack(costs), codes


def descend_rows(residual: Tensor, dense: Tensor, scale: Tensor, h: Tensor, bits: int) -> Tensor:
    """residual (used up) and dense (updated) [R, N], scale [N], h [R, R] -> q [R, N] uint8."""
    q = torch.empty(dense.shape, dtype=torch.uint8)
    zero = np.float32(1 << (bits - 1))
    with cores():
        _descend_rows(residual.numpy(), dense.numpy(), scale.numpy(), h.numpy(), zero, q.numpy())
    return q


def fit_and_round(
    w: Tensor, row_weights: Tensor, column_weights: Tensor, shares: Tensor, upper: Tensor, bits: int, window: int
) -> groups.Rounded:
    return groups.fit_and_round(scale_costs, round_rows, w, row_weights, column_weights, shares, upper, bits, window)


def descend_group(
    residual: Tensor, dense: Tensor, q: Tensor, codes: Tensor, scale_max: Tensor, h: Tensor, bits: int
) -> Tensor:
    return groups.descend_group(descend_rows, residual, dense, q, codes, scale_max, h, bits)


@njit(parallel=True, cache=True, error_model="numpy")
def _factor_errors(x: Floats, trial: Floats, factors: Floats, zero: np.float32) -> NDArray[np.float64]:
    num_columns = x.shape[1]
    num_tiles = (num_columns + TILE - 1) // TILE
    partial = np.empty((num_tiles, len(factors)), np.float64)
    for t in prange(num_tiles):
        stop = min(num_columns, (t + 1) * TILE)
        _tile_errors(x[:, t * TILE : stop].copy(), trial[t * TILE : stop], factors, zero, partial[t])
    errors: NDArray[np.float64] = partial.sum(0)
    return errors


@njit(cache=True, error_model="numpy")
def _tile_errors(x: Floats, trial: Floats, factors: Floats, zero: np.float32, out: NDArray[np.float64]) -> None:
    """Errors are summed in units of a column's scale, which keeps division out of the inner loop."""
    width = x.shape[1]
    inverse, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(len(factors)):
        for n in range(width):
            inverse[n] = np.float32(1) / (trial[n] * factors[i])
            sums[n] = 0
        for r in range(x.shape[0]):
            for n in range(width):
                ratio = x[r, n] * inverse[n]
                level = (min(max(ratio, -zero), zero - np.float32(1)) + ROUNDER) - ROUNDER
                error = abs(level - ratio)
                sums[n] += error * error * error * np.sqrt(error)
        total = 0.0
        for n in range(width):
            scale = np.float64(trial[n] * factors[i])
            total += sums[n] * scale * scale * scale * np.sqrt(scale)
        out[i] = total


@njit(parallel=True, cache=True, error_model="numpy")
def _round_rows(
    w: Floats, scale: Floats, upper: Floats, zero: np.float32, q: NDArray[np.uint8], dense: Floats, errors: Floats
) -> None:
    num_columns = w.shape[1]
    for t in prange((num_columns + TILE - 1) // TILE):
        tile = slice(t * TILE, min(num_columns, (t + 1) * TILE))
        _round_tile(w[:, tile].copy(), scale[tile], upper, zero, q[:, tile], dense[:, tile], errors[:, tile])


@njit(cache=True, error_model="numpy")
def _round_tile(
    w: Floats, scale: Floats, upper: Floats, zero: np.float32, q: NDArray[np.uint8], dense: Floats, errors: Floats
) -> None:
    """In runs of four rows (a group is a multiple of 32): what lies below is read and written once for all four."""
    num_rows, width = w.shape
    error = np.empty((4, width), np.float32)
    for first in range(0, num_rows, 4):
        for i in range(4):
            c = first + i
            _round_row(w[c], scale, upper[c, c], zero, q[c], dense[c], error[i])
            errors[c] = error[i]
            for r in range(c + 1, first + 4):
                for n in range(width):
                    w[r, n] -= upper[c, r] * error[i, n]
        for r in range(first + 4, num_rows):
            u0, u1, u2, u3 = upper[first, r], upper[first + 1, r], upper[first + 2, r], upper[first + 3, r]
            for n in range(width):
                w[r, n] = w[r, n] - u0 * error[0, n] - u1 * error[1, n] - u2 * error[2, n] - u3 * error[3, n]


@njit(parallel=True, cache=True, error_model="numpy")
def _scale_costs(
    x: Floats,
    row_weights: Floats,
    column_weights: Floats,
    table: Floats,
    zero: np.float32,
    window: int,
    codes: NDArray[np.uint8],
) -> NDArray[np.float64]:
    num_columns = x.shape[1]
    num_tiles = (num_columns + TILE - 1) // TILE
    partial = np.empty((num_tiles, len(table)), np.float64)
    for t in prange(num_tiles):
        tile = slice(t * TILE, min(num_columns, (t + 1) * TILE))
        part, base = x[:, tile].copy(), np.empty(tile.stop - tile.start, np.float32)
        _bases(part, zero, base)
        for j in range(len(table)):
            best = _tile_costs(part, base, row_weights, table[j], zero, window, codes[j, tile])
            partial[t, j] = (best * column_weights[tile]).sum()
    costs: NDArray[np.float64] = partial.sum(0)
    return costs


@njit(cache=True, error_model="numpy")
def _bases(x: Floats, zero: np.float32, base: Floats) -> None:
    """The scale of each column that clips nothing by more than half a step."""
    base[:] = 0
    for r in range(x.shape[0]):
        for n in range(x.shape[1]):
            base[n] = max(base[n], abs(x[r, n]))
    for n in range(x.shape[1]):
        base[n] /= zero - np.float32(0.5)


@njit(cache=True, error_model="numpy")
def _tile_costs(
    x: Floats,
    base: Floats,
    row_weights: Floats,
    scales: Floats,
    zero: np.float32,
    window: int,
    codes: NDArray[np.uint8],
) -> Floats:
    """Each column's least cost over `window` codes downward from the first whose scale reaches its base."""
    num_rows, width = x.shape
    first, best = np.empty(width, np.int64), np.full(width, np.inf, np.float32)
    scale, inverse, sums = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for n in range(width):
        first[n] = min(np.searchsorted(scales, base[n]), 15)
    for offset in range(window):
        for n in range(width):
            scale[n] = scales[max(first[n] - offset, 0)]
            inverse[n] = np.float32(1) / scale[n] if scale[n] > 0 else np.float32(0)
            sums[n] = 0
        for r in range(num_rows):
            for n in range(width):
                level = (min(max(x[r, n] * inverse[n], -zero), zero - np.float32(1)) + ROUNDER) - ROUNDER
                error = level * scale[n] - x[r, n]
                sums[n] += row_weights[r] * (error * error)
        for n in range(width):
            if sums[n] < best[n]:
                best[n] = sums[n]
                codes[n] = max(first[n] - offset, 0)
    return best


@njit(parallel=True, cache=True, error_model="numpy")
def _descend_rows(
    residual: Floats, dense: Floats, scale: Floats, h: Floats, zero: np.float32, q: NDArray[np.uint8]
) -> None:
    num_columns = dense.shape[1]
    for t in prange((num_columns + TILE - 1) // TILE):
        tile = slice(t * TILE, min(num_columns, (t + 1) * TILE))
        part = residual[:, tile].copy()
        _descend_tile(part, dense[:, tile], scale[tile], h, zero, q[:, tile])
        residual[:, tile] = part


@njit(cache=True, error_model="numpy")
def _descend_tile(
    residual: Floats, dense: Floats, scale: Floats, h: Floats, zero: np.float32, q: NDArray[np.uint8]
) -> None:
    """In runs of four rows, as _round_tile; but what lies above is updated too."""
    num_rows, width = residual.shape
    step = np.empty((4, width), np.float32)
    for first in range(0, num_rows, 4):
        for i in range(4):
            c = first + i
            _descend_row(residual[c], dense[c], scale, h[c, c], zero, q[c], step[i])
            for r in range(first, first + 4):
                for n in range(width):
                    residual[r, n] -= h[c, r] * step[i, n]
        for r in range(num_rows):
            if first <= r < first + 4:
                continue
            h0, h1, h2, h3 = h[first, r], h[first + 1, r], h[first + 2, r], h[first + 3, r]
            for n in range(width):
                left = residual[r, n] - h0 * step[0, n] - h1 * step[1, n]
                residual[r, n] = left - h2 * step[2, n] - h3 * step[3, n]


@njit(cache=True, error_model="numpy")
def _descend_row(
    residual: Floats,
    dense: Floats,
    scale: Floats,
    curvature: np.float32,
    zero: np.float32,
    q: NDArray[np.uint8],
    step: Floats,
) -> None:
    for n in range(len(dense)):
        level = _level((dense[n] + residual[n] / curvature) / scale[n], zero)
        q[n] = np.uint8(level + zero)
        step[n] = level * scale[n]
    _to_half_precision(step)
    for n in range(len(dense)):
        value = step[n]
        step[n] = value - dense[n]
        dense[n] = value


@njit(cache=True, error_model="numpy")
def _round_row(
    w: Floats, scale: Floats, pivot: np.float32, zero: np.float32, q: NDArray[np.uint8], dense: Floats, error: Floats
) -> None:
    value = np.empty(len(w), np.float32)
    for n in range(len(w)):
        level = _level(w[n] / scale[n], zero)
        q[n] = np.uint8(level + zero)
        value[n] = level * scale[n]
    _to_half_precision(value)
    for n in range(len(w)):
        dense[n] = value[n]
        error[n] = (w[n] - value[n]) / pivot


@njit(cache=True, error_model="numpy")
def _level(ratio: np.float32, zero: np.float32) -> np.float32:
    """The nearest level in [-zero, zero - 1]; the top one for 0 / 0 (a scale that underflowed), as the format wants."""
    top = zero - np.float32(1)
    inside = max(ratio, -zero) if ratio < top else top  # false of NaN
    return (inside + ROUNDER) - ROUNDER


@njit(cache=True, error_model="numpy")
def _to_half_precision(values: Floats) -> None:
    """Round to the nearest fp16 value, half to even, in place. On bits, because Numba has no fp16 on CPUs."""
    bits = values.view(np.int32)
    for n in range(len(values)):
        if abs(values[n]) < HALF_NORMAL:
            values[n] = (values[n] + HALF_ROUNDER) - HALF_ROUNDER
        else:
            bits[n] = (bits[n] + np.int32(0xFFF) + ((bits[n] >> 13) & np.int32(1))) & np.int32(-8192)
