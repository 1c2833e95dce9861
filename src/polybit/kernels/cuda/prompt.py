"""Products of many rows, which are prompts: activations gathered into the order of the matrix's rows, then some columns
at a time dequantized and multiplied by torch.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from polybit.kernels.cuda.gather import can_gather, gather, gather_gated, gather_normed
from polybit.kernels.cuda.stream import TILE_COLUMNS
from polybit.kernels.cuda.streamed import HALF, Streamed
from polybit.kernels.reference.matrices import MAX_WORK_WEIGHTS
from polybit.kernels.triton import gated_activate, rms_norm
from polybit.kernels.triton.reduction import num_processors
from polybit.spec import Activation

# Others take seven bytes a weight on their way to a dense matrix, which is what memory plans keep free; these take two.
WORK_WEIGHTS = MAX_WORK_WEIGHTS * 7 // 2
PRODUCT_TILE = (128, 256)  # tokens and columns that a multiprocessor works on at a time in torch's large products

Gather = Callable[[Tensor], Tensor]  # order [K] -> activations [T, K] in that order


class Columns(NamedTuple):
    """[start, stop) of one matrix"""

    matrix: int
    start: int
    stop: int


def multiply(x: Tensor, matrix: Streamed) -> Tensor:
    """x [T, K] -> x W [T, N] in x's dtype"""
    if _can_gather(x):
        return _multiply(len(x), x.dtype, matrix, lambda order: gather(x, order))
    return _multiply(len(x), x.dtype, matrix, lambda order: x[:, order])


def norm_multiply(x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Streamed) -> Tensor:
    """The same of rms_norm(x), weight [K]; in the matrix's dtype."""
    if not can_gather(x.shape[1], x.device):
        return multiply(rms_norm(x, weight, eps, offset).to(matrix.dtype), matrix)
    dtype = matrix.dtype
    return _multiply(len(x), dtype, matrix, lambda order: gather_normed(x, weight, eps, offset, dtype, order))


def gated_multiply(gate: Tensor, up: Tensor, activation: Activation, matrix: Streamed) -> Tensor:
    """The same of act(gate) * up, both [T, K]; in gate's dtype."""
    if not _can_gather(gate):
        return multiply(gated_activate(gate, up, activation), matrix)
    return _multiply(len(gate), gate.dtype, matrix, lambda order: gather_gated(gate, up, activation, order))


def _can_gather(x: Tensor) -> bool:
    return x.dtype in HALF and can_gather(x.shape[1], x.device)


def _multiply(num_tokens: int, dtype: torch.dtype, matrix: Streamed, gather: Gather) -> Tensor:
    device = matrix.stream.device
    out = torch.empty(num_tokens, matrix.out_features, dtype=dtype, device=device)
    most = min(matrix.out_features, piece_columns(matrix.in_features, num_tokens, num_processors(device)))
    dense = torch.empty(most, matrix.in_features, dtype=matrix.dtype, device=device)
    column = 0
    for first, stop in matrix.input.spans:
        x = gather(matrix.order_of(first))
        for piece in pieces(tuple(shape.out_features for shape in matrix.shapes[first:stop]), most):
            weights = _dequantize(matrix, first, piece, dense)
            next_column = column + weights.shape[0]
            torch.mm(x, weights.to(dtype).T, out=out[:, column:next_column])
            column = next_column
    return out


def _dequantize(matrix: Streamed, first: int, piece: tuple[Columns, ...], dense: Tensor) -> Tensor:
    """The columns of a piece as the first rows of `dense`; its matrices are counted from `first`."""
    row = 0
    for index, start, stop in piece:
        matrix.dequantize(first + index, start, stop, dense[row : row + stop - start])
        row += stop - start
    return dense[:row]


@cache
def piece_columns(in_features: int, num_tokens: int, num_processors: int) -> int:
    """How many columns to dequantize at once: as many as the work space holds that are whole waves of output tiles."""
    tokens, columns = PRODUCT_TILE
    wave = num_processors // -(-num_tokens // tokens) * columns
    most = WORK_WEIGHTS // in_features
    step = next((step for step in (wave, columns) if 0 < step <= most), TILE_COLUMNS)
    return max(TILE_COLUMNS, most // step * step)


@cache
def pieces(widths: tuple[int, ...], most: int) -> tuple[tuple[Columns, ...], ...]:
    """Columns of neighbouring matrices, at most `most` at a time; each begins at a tile of 64 of its matrix."""
    found, room = [list[Columns]()], most
    for index, width in enumerate(widths):
        start = 0
        while start < width:
            stop = width if width <= start + room else (start + room) // TILE_COLUMNS * TILE_COLUMNS
            if stop > start:
                found[-1].append(Columns(index, start, stop))
            room -= stop - start
            start = stop
            if start < width:
                found.append([])
                room = most
    return tuple(map(tuple, found))
