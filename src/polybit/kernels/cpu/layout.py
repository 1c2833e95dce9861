"""EXL2 matrices as the kernels read them: the file's words in another order, and no more of them.

Columns come in tiles of TILE, each of which is one stretch of memory. In a tile rows come in blocks of 32, which are
multiplied in STEPS steps of four rows, whose weights lie in the four bytes of a column's word. Widths are split into
planes that divide a byte (3 bits: 2 and 1, 5: 4 and 1, 6: 4 and 2); word w of a plane of p bits holds steps
w * 8 / p and following, the first in the lowest bits of each byte. Words of 2, 4 and 8 bits are thereby the file's own.
Those of several planes follow one another as steps need them: memory is read without a jump, which doubles the speed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polybit.format.exl2 import Exl2Tensor, Layout, group_scales
from polybit.format.packing import BLOCK_ROWS, CODE_BITS, unpack_codes
from polybit.kernels.cpu import large_pages
from polybit.kernels.cpu.rearranging import rearrange

TILE = 64  # columns
LANES = 16  # columns of a vector
STEPS = 8
PLANES = MappingProxyType({2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)})
MAX_RUN_BLOCKS = 16  # so that sums of integers stay exact in fp32


@dataclass(frozen=True)
class Run:
    """Blocks of one group, which has more where it is longer than a run can be."""

    bits: int
    num_blocks: int
    group: int


@dataclass(frozen=True)
class Part:
    """One matrix of those that are multiplied together."""

    layout: Layout
    out_features: int

    @property
    def num_tiles(self) -> int:
        return -(-self.out_features // TILE)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return _runs(self.layout)


@dataclass(frozen=True, eq=False)
class TiledMatrix:
    """Matrices of one input, whose outputs follow one another. Starts in `tiles` and `inputs` count elements.

    Words are large, so parts that are joined keep theirs where they are.
    """

    parts: tuple[Part, ...]
    dtype: torch.dtype  # that it was prepared for
    words: tuple[Tensor, ...]  # of each part, [words of its tiles] int32
    codes: Tensor  # [groups of all tiles, LANES] int16: scale codes of columns n, 16 + n, 32 + n, 48 + n
    scales: Tensor  # [groups of all parts, 16] fp32: of each code
    runs: Tensor  # [runs of all parts, 3] int32: bits, blocks, group
    order: Tensor  # [rows of all inputs] int32: the feature that each step takes next
    inputs: Tensor  # [I, 3] int64: first row, first run and number of runs of each distinct order of the activations
    tiles: Tensor  # [tiles, 8] int64: see WORDS and following

    @property
    def in_features(self) -> int:
        return self.parts[0].layout.in_features

    @cached_property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.words) + sum(array.nbytes for array in self.arrays)

    @cached_property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What kernels take; WORDS are addresses there."""
        tiles = self.tiles.clone()
        first = torch.tensor([words.data_ptr() for words in self.words])
        counts = torch.tensor([part.num_tiles for part in self.parts])
        tiles[:, WORDS] = 4 * tiles[:, WORDS] + first.repeat_interleave(counts)
        held = (self.codes, self.scales, self.runs, self.order, self.inputs, tiles)
        return tuple(tensor.numpy() for tensor in held)


# What a row of TiledMatrix.tiles holds.
WORDS, CODES, RUNS, NUM_RUNS, SCALES, INPUT, COLUMN, WIDTH = range(8)
TILE_FIELDS, INPUT_FIELDS = 8, 3  # int64 in a row of tiles and of inputs


def prepare(tensor: Exl2Tensor, prescale: float, dtype: torch.dtype) -> TiledMatrix:
    """Rearrange one matrix."""
    part = Part(tensor.layout, tensor.out_features)
    return _assemble(
        (part,),
        dtype,
        words=(_tiled_words(tensor, part),),
        codes=_tiled_codes(tensor, part),
        scales=_scale_table(tensor, prescale),
        orders=[_step_order(tensor)],
    )


def num_bytes(layout: Layout, out_features: int) -> int:
    """Of the matrix that `prepare` makes."""
    part = Part(layout, out_features)
    words, codes = layout.packed_rows * TILE * 4, len(layout.groups) * LANES * 2  # of a tile
    tiles = part.num_tiles * (words + codes + TILE_FIELDS * 8)
    scales, runs, order = len(layout.groups) * (1 << CODE_BITS) * 4, len(part.runs) * 3 * 4, layout.in_features * 4
    return tiles + scales + runs + order + INPUT_FIELDS * 8


def join(matrices: Sequence[TiledMatrix]) -> TiledMatrix:
    """One product for matrices that share their input."""
    return _assemble(
        tuple(part for matrix in matrices for part in matrix.parts),
        matrices[0].dtype,
        words=tuple(words for matrix in matrices for words in matrix.words),
        codes=torch.cat([matrix.codes for matrix in matrices]),
        scales=torch.cat([matrix.scales for matrix in matrices]),
        orders=[order_of(matrix, i) for matrix in matrices for i in range(len(matrix.parts))],
    )


def order_of(matrix: TiledMatrix, index: int) -> Tensor:
    """[K] int32: the features in the order in which the steps of one part take them."""
    first_tile = sum(part.num_tiles for part in matrix.parts[:index])
    start = int(matrix.inputs[int(matrix.tiles[first_tile, INPUT]), 0])
    return matrix.order[start : start + matrix.in_features]


def _assemble(
    parts: tuple[Part, ...],
    dtype: torch.dtype,
    words: tuple[Tensor, ...],
    codes: Tensor,
    scales: Tensor,
    orders: list[Tensor],
) -> TiledMatrix:
    inputs = _distinct_inputs(parts, orders)
    firsts = sorted(set(inputs))  # the part that each distinct input belongs to first
    first_runs = list(accumulate((len(part.runs) for part in parts), initial=0))
    runs = [(run.bits, run.num_blocks, run.group) for part in parts for run in part.runs]
    rows = range(0, len(firsts) * len(orders[0]), len(orders[0]))
    return TiledMatrix(
        parts=parts,
        dtype=dtype,
        words=words,
        codes=codes,
        scales=scales,
        runs=torch.tensor(runs, dtype=torch.int32),
        order=torch.cat([orders[i] for i in firsts]),
        inputs=torch.tensor([(row, first_runs[i], len(parts[i].runs)) for row, i in zip(rows, firsts, strict=True)]),
        tiles=torch.tensor(list(_tile_table(parts, [firsts.index(i) for i in inputs]))),
    )


def _distinct_inputs(parts: Sequence[Part], orders: Sequence[Tensor]) -> list[int]:
    """For each part the first that takes activations in the same order and runs."""
    return [
        next(i for i in range(len(parts)) if parts[i].runs == part.runs and torch.equal(orders[i], order))
        for part, order in zip(parts, orders, strict=True)
    ]


def _tile_table(parts: Sequence[Part], inputs: Sequence[int]) -> Iterator[tuple[int, ...]]:
    code = run = scale = column = 0
    for part, place in zip(parts, inputs, strict=True):
        num_groups, num_words = len(part.layout.groups), part.layout.packed_rows * TILE
        for tile, start in enumerate(range(0, part.out_features, TILE)):
            width = min(TILE, part.out_features - start)
            yield tile * num_words, code, run, len(part.runs), scale, place, column + start, width
            code += num_groups
        run, scale, column = run + len(part.runs), scale + num_groups, column + part.out_features


@cache
def _runs(layout: Layout) -> tuple[Run, ...]:
    found = list[Run]()
    for index, group in enumerate(layout.groups):
        left = group.rows // BLOCK_ROWS
        while left:
            found.append(Run(group.bits, min(left, MAX_RUN_BLOCKS), index))
            left -= found[-1].num_blocks
    return tuple(found)


# ---- words


def _tiled_words(tensor: Exl2Tensor, part: Part) -> Tensor:
    """[tiles * R * TILE] int32, in columns that are not there zeros."""
    num_rows = len(tensor.q_weight)
    tiled = large_pages.words(part.num_tiles * num_rows * TILE)
    out = tiled.view(part.num_tiles, num_rows, TILE).numpy().view(np.uint32)
    for span in part.layout.spans():
        words = tensor.q_weight[span.packed_rows].contiguous().numpy().view(np.uint32)
        rearrange(words, span.bits, _moves(span.bits), span.packed_rows.start, out)
    return tiled


@cache
def _moves(bits: int) -> NDArray[np.uint32]:
    """What `rearrange` takes: for each value and plane the bits of the file's words that make it up."""
    if PLANES[bits] == (bits,):
        return np.array([(word, 0, 0xFFFFFFFF, 0, word) for word in range(bits)], np.uint32)
    return np.array(list(_plane_moves(bits)), np.uint32)


def _plane_moves(bits: int) -> Iterator[tuple[int, int, int, int, int]]:
    for place, row in enumerate(step_rows(bits).tolist()):
        step, byte = divmod(place, 4)
        low = first = 0
        for plane in PLANES[bits]:
            word, down = divmod(row * bits + low, 32)
            target, up = word_places(bits)[first + step * plane // 8], 8 * byte + step * plane % 8
            inside = min(plane, 32 - down)
            yield word, down, (1 << inside) - 1, up, target
            if inside < plane:
                yield word + 1, 0, (1 << (plane - inside)) - 1, up + inside, target
            low, first = low + plane, first + plane


@cache
def word_places(bits: int) -> tuple[int, ...]:
    """Where in a block each word is, plane by plane: by the step that needs it first, upper planes first."""
    planes = PLANES[bits]
    words = [(word * 8 // plane, -i) for i, plane in enumerate(planes) for word in range(plane)]
    return tuple(sorted(words).index(word) for word in words)


@cache
def step_rows(bits: int) -> Tensor:
    """[32] int64: the rows of a block in the order in which steps take them, four each."""
    base = PLANES[bits][0]  # its words are the file's: byte j of word w has rows w * 32/b + j * 8/b and following
    word, byte, place = 32 // base, 8 // base, torch.arange(STEPS)
    first = place // byte * word + place % byte
    return (first[:, None] + byte * torch.arange(4)).flatten()


def _step_order(tensor: Exl2Tensor) -> Tensor:
    perm = tensor.perm.to(torch.int32)
    blocks = [perm[span.rows].view(-1, BLOCK_ROWS)[:, step_rows(span.bits)] for span in tensor.layout.spans()]
    return torch.cat(blocks).flatten()


# ---- scales


def _tiled_codes(tensor: Exl2Tensor, part: Part) -> Tensor:
    codes = F.pad(unpack_codes(tensor.q_scale), (0, part.num_tiles * TILE - part.out_features)).to(torch.int16)
    vectors = codes.view(-1, part.num_tiles, TILE // LANES, LANES).transpose(0, 1)  # [tiles, G, 4, LANES]
    shifts = CODE_BITS * torch.arange(TILE // LANES, dtype=torch.int16)[:, None]
    return (vectors << shifts).sum(2, dtype=torch.int16).flatten(0, 1)


def _scale_table(tensor: Exl2Tensor, prescale: float) -> Tensor:
    codes = torch.arange(1 << CODE_BITS).expand(len(tensor.q_scale_max), -1)
    return group_scales(codes, tensor.q_scale_max, prescale).float()


# ---- back to numbers


def dequantize(matrix: TiledMatrix) -> Tensor:
    """[K, N] in the matrix's type, rows in the order of input features."""
    return torch.cat([_dense(matrix, i) for i in range(len(matrix.parts))], dim=1).to(matrix.dtype)


def _dense(matrix: TiledMatrix, index: int) -> Tensor:
    """[K, N] fp16 of one part"""
    part, order = matrix.parts[index], order_of(matrix, index).long()
    first = matrix.tiles[sum(each.num_tiles for each in matrix.parts[:index])].tolist()
    words = matrix.words[index].view(part.num_tiles, -1, TILE)
    scales = _column_scales(matrix, part, first)
    out = torch.empty(part.layout.in_features, part.out_features, dtype=torch.float16)
    for span in part.layout.spans():
        q = _unpack(words[:, span.packed_rows].transpose(0, 1).flatten(1), span.bits)[:, : part.out_features]
        out[order[span.rows]] = (q - (1 << (span.bits - 1))).half()
    rows_of_group = torch.tensor([group.rows for group in part.layout.groups])
    scales = scales.repeat_interleave(rows_of_group, dim=0)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return out * scales[inverse]


def _unpack(words: Tensor, bits: int) -> Tensor:
    """words [R, N] of one width -> q [rows, N] int32 in the order of steps"""
    blocks, q = words.view(-1, bits, words.shape[1])[:, list(word_places(bits))], torch.zeros((), dtype=torch.int32)
    first = low = 0
    for plane in PLANES[bits]:
        shifts = 8 * torch.arange(4, dtype=torch.int32) + plane * torch.arange(8 // plane, dtype=torch.int32)[:, None]
        values = blocks[:, first : first + plane, None, None] >> shifts[:, :, None] & (1 << plane) - 1
        q = q | values.reshape(len(blocks), STEPS, 4, -1) << low
        first, low = first + plane, low + plane
    return q.flatten(0, 2)


def _column_scales(matrix: TiledMatrix, part: Part, first: Sequence[int]) -> Tensor:
    """[G, N] fp16"""
    num_groups = len(part.layout.groups)
    codes = matrix.codes[first[CODES] : first[CODES] + part.num_tiles * num_groups].view(part.num_tiles, -1, 1, LANES)
    shifts = CODE_BITS * torch.arange(TILE // LANES, dtype=torch.int16)[:, None]
    columns = (codes >> shifts & 15).flatten(2).transpose(0, 1).flatten(1)[:, : part.out_features].long()
    table = matrix.scales[first[SCALES] : first[SCALES] + num_groups]
    return table.gather(1, columns).half()
