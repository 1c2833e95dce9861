"""Products of activations with EXL2 matrices: activations quantized to two bytes each, tiles of columns over the cores.

Rows of activations go through a tile in passes of up to 8 rows; a tile stays in a core's second-level cache.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, njit
from numpy.typing import NDArray

from polybit.kernels.cpu.atomic import take_next
from polybit.kernels.cpu.bits import ROUNDER, from_bits
from polybit.kernels.cpu.inner import inner
from polybit.kernels.cpu.layout import CODES, COLUMN, INPUT, RUNS, SCALES, TILE, WIDTH, WORDS
from polybit.kernels.cpu.team import LINE, Board, together
from polybit.kernels.cpu.tile_code import SIGNATURE, call_tile, multiply_tile

BLOCK = 32
LARGEST = np.float32(32512)  # 127 * 256: what two bytes hold with the upper one in [-127, 127]
SMALLEST = np.float32(1e-30)  # activations all below it are taken for zero

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.int8]
Table = NDArray[np.int64]


@inner()
def quantize_row(x: Floats, runs: Ints, t: int, rows: int, out: Bytes, sums: Ints, scales: Floats) -> None:
    """Row t of a pass of `rows`: x [K], in the order of steps -> its bytes in out, its sums and scales.

    out [blocks, rows, 2, 32]: for each block its upper and lower bytes. sums [runs, rows, 2]:
    what a product's sums start from, which is minus the zero point times the sum of the bytes. scales [runs, rows].
    """
    bits, first = x.view(np.int32), 0
    for r in range(len(runs)):
        last = first + runs[r, 1] * BLOCK
        largest = np.int32(0)  # as integers, magnitudes keep their order, and what is not finite is above all others
        for k in range(first, last):
            largest = max(largest, bits[k] & np.int32(0x7FFFFFFF))
        scales[r * rows + t], inverse = _scale(largest)
        high_sum = low_sum = np.int32(0)
        for block in range(first, last, BLOCK):
            at = 2 * (block * rows + t * BLOCK)
            for k in range(BLOCK):
                value = np.int32((x[block + k] * inverse + ROUNDER) - ROUNDER)
                high = (value + np.int32(128)) >> np.int32(8)
                low = value - (high << np.int32(8))
                out[at + k], out[at + BLOCK + k] = high, low
                high_sum += high
                low_sum += low
        zero = np.int32(1) << (runs[r, 0] - np.int32(1))
        sums[2 * (r * rows + t)], sums[2 * (r * rows + t) + 1] = -zero * high_sum, -zero * low_sum
        first = last


@inner()
def _scale(largest_bits: np.int32) -> tuple[np.float32, np.float32]:
    """Of a run whose largest magnitude has these bits: what an integer counts, and its inverse."""
    largest = from_bits(largest_bits)
    return largest / LARGEST, LARGEST / largest if largest >= SMALLEST else np.float32(0)


@njit(cache=True, error_model="numpy")
def quantize_pass(
    x: Floats, start: int, rows: int, order: Ints, runs: Ints, row: Floats, out: Bytes, sums: Ints, scales: Floats
) -> None:
    """Rows [start, start + rows) of x, those that are not there as zeros. row [K]: space for one of them, in order."""
    for t in range(rows):
        for k in range(len(order)):
            row[k] = x[start + t, order[k]] if start + t < len(x) else np.float32(0)
        quantize_row(row, runs, t, rows, out, sums, scales)


@dataclass(frozen=True)
class Passes:
    """How rows go through a tile: `starts` has the first row of each pass and where the last one ends; `functions` the
    addresses of the compiled products of one tile by their number of rows.
    """

    starts: Table
    functions: Table


@cache
def passes(num_rows: int) -> Passes:
    """Of as many rows as there is code for, which is compiled when it is first needed."""
    starts, functions = [0], np.zeros(9, np.int64)
    while (left := num_rows - starts[-1]) > 0:
        rows = 8 if left > 4 else min(left, 2)
        starts.append(starts[-1] + rows)
        functions[rows] = _tile_function(rows).address
    return Passes(np.array(starts, np.int64), functions)


@cache
def _tile_function(rows: int) -> Any:
    """A function of its own, so that it is compiled once and not into all that call it."""

    def tile(words, codes, runs, num_runs, table, x, sums, scales, y):  # type: ignore[no-untyped-def]
        multiply_tile(rows, words, codes, runs, num_runs, table, x, sums, scales, y)  # type: ignore[call-arg]

    return cfunc(SIGNATURE, cache=True)(tile)


@inner()
def _quantize_inputs(
    worker: int, taken: Table, x: Floats, starts: Table, order: Ints, runs: Ints, inputs: Table, space: Floats,
    out: Bytes, sums: Ints, scales: Floats,
) -> None:  # fmt: skip
    """Each pass of each order of the activations. space [workers, K]"""
    padded, width = starts[-1], x.shape[1]
    i = take_next(taken, 0)
    while i < (len(starts) - 1) * len(inputs):
        start, rows = starts[i // len(inputs)], starts[i // len(inputs) + 1] - starts[i // len(inputs)]
        row, run, num_runs = inputs[i % len(inputs)]
        quantize_pass(
            x, start, rows, order[row : row + width], runs[run : run + num_runs], space[worker],
            out[2 * (row * padded + start * width) :], sums[2 * (run * padded + start * num_runs) :],
            scales[run * padded + start * num_runs :],
        )  # fmt: skip
        i = take_next(taken, 0)


@inner()
def _multiply_tiles(
    worker: int, taken: Table, codes: NDArray[np.int16], table: Floats, runs: Ints, inputs: Table, tiles: Table,
    residual: Floats, starts: Table, functions: Table, x: Bytes, sums: Ints, scales: Floats, ys: Floats, out: Floats,
) -> None:  # fmt: skip
    """Each worker has its share of tiles, one stretch of memory; those that are done with theirs help the others.

    taken [workers, LINE]: of each share. ys [workers, 8, TILE]: space for what is multiplied.
    """
    workers, num_rows, width, padded = len(taken), len(out), len(x) // (2 * starts[-1] * len(inputs)), starts[-1]
    y = ys[worker]
    for i in range(worker, worker + workers):
        share = i % workers
        first, end = share * len(tiles) // workers, (share + 1) * len(tiles) // workers
        i = first + take_next(taken[share], 0)
        while i < end:
            tile = tiles[i]
            row, run, num_runs = inputs[tile[INPUT]]
            column = tile[COLUMN]
            for p in range(len(starts) - 1):
                start = starts[p]
                call_tile(
                    functions[starts[p + 1] - start], tile[WORDS], codes.ctypes.data + 32 * tile[CODES],
                    runs.ctypes.data + 12 * tile[RUNS], num_runs, table.ctypes.data + 64 * tile[SCALES],
                    x.ctypes.data + 2 * (row * padded + start * width),
                    sums.ctypes.data + 8 * (run * padded + start * num_runs),
                    scales.ctypes.data + 4 * (run * padded + start * num_runs), y.ctypes.data,
                )  # fmt: skip
                for t in range(min(num_rows, starts[p + 1]) - start):
                    for n in range(tile[WIDTH]):
                        added = residual[start + t, column + n] if len(residual) else np.float32(0)
                        out[start + t, column + n] = y[t, n] + added
            i = first + take_next(taken[share], 0)


@njit(cache=True, error_model="numpy", nogil=True)
def multiply(
    x: Floats, codes: NDArray[np.int16], table: Floats, runs: Ints, order: Ints, inputs: Table, tiles: Table,
    residual: Floats, starts: Table, functions: Table, board: Board, workers: int, out: Floats,
) -> None:  # fmt: skip
    """x [T, K] -> out [T, N], plus the residual [T, N] unless that has no rows. The others: see TiledMatrix, Passes."""
    padded, num_inputs = starts[-1], (len(starts) - 1) * len(inputs)
    sorted_x = np.empty(2 * padded * len(order), np.int8)
    sums = np.empty(2 * padded * len(runs), np.int32)
    scales = np.empty(padded * len(runs), np.float32)
    taken, num_quantizers = np.zeros((workers + 1, LINE), np.int64), min(workers, num_inputs)
    space = np.empty((num_quantizers, x.shape[1]), np.float32)
    together(
        board, num_quantizers, _quantize_inputs,
        (taken[workers], x, starts, order, runs, inputs, space, sorted_x, sums, scales),
    )  # fmt: skip
    ys = np.empty((workers, 8, TILE), np.float32)
    sorted_inputs = sorted_x, sums, scales
    together(
        board, workers, _multiply_tiles,
        (taken[:workers], codes, table, runs, inputs, tiles, residual, starts, functions, *sorted_inputs, ys, out),
    )  # fmt: skip
