"""EXL2 matrices: weights equal to the format's in every bit, as a dense matrix or inside a product.

Widths that do not divide 32 are held as two planes, which the file's words are repacked into at load: 3 bits as 2 and
1, 5 as 4 and 1, 6 as 4 and 2. Nothing else changes its place, and no byte is added.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor, Layout, Span
from polybit.format.packing import BLOCK_ROWS, pack_rows, unpack_rows
from polybit.kernels.triton import packed
from polybit.kernels.triton.packed import above_1024, finish, launch_product, plane

SPAN_TABLE_BYTES = 4 * 6 * 3
LOW_PLANES = {3: 2, 5: 4, 6: 4}  # the wider plane of the widths that have two
WIDTHS = tl.constexpr((8, 6, 5, 4, 3, 2))  # in order of rows
REPACKED_AT_ONCE = 1 << 24  # weights, which bounds the work space


@triton.jit
def _weights(words, q_scale, units, group, row, column, num_columns, BITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """A block of 32 sorted rows, its words from packed row `row` on: [32, BLOCK_N] fp16 (format 4)."""
    if BITS == 3:
        low = plane(words, row, None, column, num_columns, 2, BLOCK_N)
        q = low | plane(words, row + 2, None, column, num_columns, 1, BLOCK_N) << 2
    elif BITS == 5:
        low = plane(words, row, None, column, num_columns, 4, BLOCK_N)
        q = low | plane(words, row + 4, None, column, num_columns, 1, BLOCK_N) << 4
    elif BITS == 6:
        low = plane(words, row, None, column, num_columns, 4, BLOCK_N)
        q = low | plane(words, row + 4, None, column, num_columns, 2, BLOCK_N) << 4
    else:
        q = plane(words, row, None, column, num_columns, BITS, BLOCK_N)
    codes = tl.load(q_scale + group * (num_columns // 8) + column // 8, column < num_columns, other=0)
    root = ((codes >> (column % 8 * 4)) & 15) + 1
    scale = (root * root).to(tl.float16) * tl.load(units + group)
    return (above_1024(q) - (1024.0 + (1 << (BITS - 1)))) * scale[None, :]


@triton.jit
def _accumulate(
    accumulator, x, words, q_scale, units, perm, groups, first, stop, offset, token_inside, column,
    num_columns, BITS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Blocks [first, stop), all of BITS bits; x points at the tokens' rows, [BLOCK_T, 1]."""
    for block in range(first, stop):
        group, row = tl.load(groups + block), offset + block * BITS
        weights = _weights(words, q_scale, units, group, row, column, num_columns, BITS, BLOCK_N)
        feature = tl.load(perm + block * 32 + tl.arange(0, 32))
        activations = tl.load(x + feature[None, :], token_inside, other=0.0)
        accumulator = tl.dot(activations, weights.to(activations.dtype), accumulator, input_precision="ieee")
    return accumulator


@triton.jit(do_not_specialize=["num_tokens"])
def _multiply(
    x,
    out,
    parts,
    counters,
    words,
    q_scale,
    units,
    perm,
    groups,
    spans,
    x_stride,
    num_tokens,
    in_features,
    num_columns,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    num_blocks = in_features // 32
    part_first, part_stop = part * num_blocks // num_parts, (part + 1) * num_blocks // num_parts
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.arange(0, BLOCK_T)[:, None]
    x += token * x_stride
    accumulator = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for i in tl.static_range(6):
        first, stop = tl.maximum(tl.load(spans + 3 * i), part_first), tl.minimum(tl.load(spans + 3 * i + 1), part_stop)
        accumulator = _accumulate(
            accumulator, x, words, q_scale, units, perm, groups, first, stop, tl.load(spans + 3 * i + 2),
            token < num_tokens, column, num_columns, WIDTHS[i], BLOCK_N,
        )  # fmt: skip
    finish(accumulator, out, parts, counters, num_tokens, num_columns, part, num_parts, BLOCK_T, BLOCK_N)


@triton.jit
def _dequantize(
    out, words, q_scale, units, perm, groups, spans, num_columns, first_column, width,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    column = first_column + tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.load(groups + block)
    feature = tl.load(perm + block * 32 + tl.arange(0, 32))
    at = feature.to(tl.int64)[:, None] * width + (column - first_column)[None, :]
    for i in tl.static_range(6):
        if (block >= tl.load(spans + 3 * i)) & (block < tl.load(spans + 3 * i + 1)):
            row = tl.load(spans + 3 * i + 2) + block * WIDTHS[i]
            weights = _weights(words, q_scale, units, group, row, column, num_columns, WIDTHS[i], BLOCK_N)
            tl.store(out + at, weights, (column < first_column + width)[None, :])


@dataclass(frozen=True)
class Exl2Matrix:
    """K in_features, N out_features, R packed rows, G groups."""

    words: Tensor  # [R, N] int32, planes
    q_scale: Tensor  # [G, N / 8] int32, as in files
    units: Tensor  # [G] float16: scales are squares of codes times these
    perm: Tensor  # [K] int32: the input feature at each sorted row
    groups: Tensor  # [K / 32] int32: the group of each block
    spans: Tensor  # [6, 3] int32: _span_table
    dtype: torch.dtype

    @property
    def in_features(self) -> int:
        return self.perm.shape[0]

    @property
    def out_features(self) -> int:
        return self.words.shape[1]

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in self._tensors)

    def multiply(self, x: Tensor) -> Tensor:
        return launch_product(_multiply, self._tensors, x, self.in_features, self.out_features)

    def dense(self, start: int, stop: int) -> Tensor:
        out = torch.empty(self.in_features, stop - start, dtype=self.dtype, device=self.words.device)
        grid = self.groups.shape[0], triton.cdiv(stop - start, packed.DENSE_COLUMNS)
        _dequantize[grid](
            out,
            *self._tensors,
            self.out_features,
            start,
            stop - start,
            BLOCK_N=packed.DENSE_COLUMNS,
            num_warps=4,
        )
        return out

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.words, self.q_scale, self.units, self.perm, self.groups, self.spans


def prepare(tensor: Exl2Tensor, prescale: float, device: torch.device, dtype: torch.dtype) -> Exl2Matrix:
    """The tensor, its words repacked, on the device."""
    layout, num_groups = tensor.layout, tensor.q_scale_max.shape[0]
    blocks_of_group = torch.tensor([group.rows // BLOCK_ROWS for group in layout.groups])
    first_code = torch.zeros(num_groups, 1, dtype=torch.uint8, device=tensor.q_scale_max.device)
    words = tensor.q_weight.to(device)
    return Exl2Matrix(
        words=torch.cat([_planes(words[span.packed_rows], span.bits) for span in layout.spans()]),
        q_scale=tensor.q_scale.to(device),
        units=exl2.group_scales(first_code, tensor.q_scale_max, prescale)[:, 0].to(device),
        perm=tensor.perm.to(device, torch.int32),
        groups=torch.arange(num_groups, dtype=torch.int32).repeat_interleave(blocks_of_group).to(device),
        spans=torch.tensor(_span_table(list(layout.spans())), dtype=torch.int32, device=device),
        dtype=dtype,
    )


def num_bytes(layout: Layout, out_features: int) -> int:
    """Of the Exl2Matrix of such a tensor."""
    num_groups, in_features = len(layout.groups), layout.in_features
    words = 4 * layout.packed_rows * out_features + num_groups * out_features // 2
    return words + 2 * num_groups + 4 * in_features + 4 * (in_features // BLOCK_ROWS) + SPAN_TABLE_BYTES


def _planes(words: Tensor, bits: int) -> Tensor:
    """Words [R, N] of one width, of which blocks follow one another, as planes."""
    if bits not in LOW_PLANES:
        return words
    low = LOW_PLANES[bits]
    blocks = max(1, REPACKED_AT_ONCE // (BLOCK_ROWS * words.shape[1]))
    return torch.cat([_two_planes(some, bits, low) for some in words.split(blocks * bits)])


def _two_planes(words: Tensor, bits: int, low: int) -> Tensor:
    q = unpack_rows(words, bits)
    planes = (pack_rows(q & ((1 << low) - 1), low), pack_rows(q >> low, bits - low))
    return torch.cat(
        [plane.view(-1, width, words.shape[1]) for plane, width in zip(planes, (low, bits - low), strict=True)], 1
    ).flatten(0, 1)


def _span_table(spans: list[Span]) -> list[list[int]]:
    """For each of WIDTHS: its first block, the block after its last, and the packed row that block 0 would have."""
    table = {bits: [0, 0, 0] for bits in WIDTHS.value}
    for span in spans:
        first, stop = span.rows.start // BLOCK_ROWS, span.rows.stop // BLOCK_ROWS
        table[span.bits] = [first, stop, span.packed_rows.start - first * span.bits]
    return list(table.values())
