"""What the kernels of packed matrices share: their words, their activations, and the sum over parts of a product.

Rows come in blocks of 32, whose packed words are whole. A plane of b bits (1, 2, 4 or 8) holds a block in b words a
column: word w has rows w * 32/b and following, lowest bits first. A product is cut into tiles of columns and, where
those are few, into parts of the rows; the last program of a tile adds up the parts in order.
"""

from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.kernels.triton.reduction import arrives_last, counters, num_at_once, num_processors

FEW_ROWS = 16  # activation rows of a launch with wide tiles
MAX_ROWS = 64  # activation rows of any launch
COLUMNS, NARROW_COLUMNS = 256, 128  # a program's share of a product of few rows, and of more
DENSE_COLUMNS = 256  # a program's share of a dequantized matrix
MIN_PART_BLOCKS = 4
MAX_PARTS = tl.constexpr(16)
BLOCK_ROWS = tl.constexpr(32)


class PackedMatrix(Protocol):
    """A matrix held in packed words."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...

    def multiply(self, x: Tensor) -> Tensor:
        """x [T, K] of at most MAX_ROWS rows -> [T, N]"""

    def dense(self, start: int, stop: int) -> Tensor:
        """Columns [start, stop) dequantized: [K, stop - start]."""


@triton.jit
def plane(words, row, num_rows, column, num_columns, PLANE: tl.constexpr, BLOCK_N: tl.constexpr):
    """One plane of a block, from packed row `row` on: integers [32, BLOCK_N]. num_rows: None if the block is whole."""
    word = row + tl.arange(0, PLANE)[:, None, None]
    column = column[None, None, :]
    inside = column < num_columns
    if num_rows is not None:
        inside &= word < num_rows
    packed = tl.load(words + word.to(tl.int64) * num_columns + column, inside, other=0)
    shifts = tl.arange(0, 32 // PLANE)[None, :, None] * PLANE
    return tl.reshape((packed >> shifts) & ((1 << PLANE) - 1), (BLOCK_ROWS, BLOCK_N))


@triton.jit
def above_1024(q):
    """1024 + q of integers q in [0, 1024), in fp16: q are the low bits of that number, so nothing is converted."""
    return (q | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def finish(
    accumulator, out, parts, counters, num_tokens, num_columns, part, num_parts, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store the product of a tile: at once, or by way of its parts."""
    token = tl.arange(0, BLOCK_T)[:, None]
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (token < num_tokens) & (column < num_columns)[None, :]
    at = token * num_columns + column[None, :]
    if num_parts == 1:
        tl.store(out + at, accumulator, inside)
    else:
        tl.store(parts + part * num_tokens * num_columns + at, accumulator, inside, cache_modifier=".cg")
        if arrives_last(counters + tl.program_id(0), num_parts):
            _add_parts(out, parts, num_tokens, num_columns, column, num_parts, num_at_once(MAX_PARTS * BLOCK_N))


@triton.jit
def _add_parts(out, parts, num_tokens, num_columns, column, num_parts, AT_ONCE: tl.constexpr):
    """Some tokens at a time, all parts of each: few rounds of loads where there are few tokens."""
    part = tl.arange(0, MAX_PARTS)[:, None]
    for start in range(0, num_tokens, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            token, inside = start + i, (column < num_columns) & (start + i < num_tokens)
            source = parts + (part * num_tokens + token) * num_columns + column[None, :]
            found = tl.load(source, inside[None, :] & (part < num_parts), other=0.0, cache_modifier=".cg")
            tl.store(out + token * num_columns + column, tl.sum(found, 0), inside)


def launch_product(
    kernel: Any, arguments: tuple[Any, ...], x: Tensor, in_features: int, out_features: int, **constants: int
) -> Tensor:
    """Run a product's kernel over tiles of columns and parts of rows: [T, N] in x's dtype."""
    x = x if x.stride(1) == 1 else x.contiguous()
    num_tokens, device = x.shape[0], x.device
    rows, columns = (FEW_ROWS, COLUMNS) if num_tokens <= FEW_ROWS else (MAX_ROWS, NARROW_COLUMNS)
    num_tiles, num_blocks = triton.cdiv(out_features, columns), triton.cdiv(in_features, BLOCK_ROWS.value)
    wanted = 3 * num_processors(device) // num_tiles
    num_parts = max(1, min(num_blocks // MIN_PART_BLOCKS, wanted, MAX_PARTS.value))
    out = torch.empty(num_tokens, out_features, dtype=x.dtype, device=device)
    held = num_parts * num_tokens * out_features if num_parts > 1 else 0
    kernel[num_tiles, num_parts](
        x,
        out,
        torch.empty(held, dtype=torch.float32, device=device),
        counters(device),
        *arguments,
        x.stride(0),
        num_tokens,
        in_features,
        out_features,
        BLOCK_T=rows,
        BLOCK_N=columns,
        num_warps=4,
        num_stages=4,
        **constants,
    )
    return out
