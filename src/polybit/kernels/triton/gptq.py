"""GPTQ matrices of 4 bits, from the file's own words: weights equal to the format's in every bit."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.format.gptq import GptqTensor
from polybit.kernels.triton import packed
from polybit.kernels.triton.packed import above_1024, finish, launch_product, plane

BLOCK_ROWS = 32


@triton.jit
def _weights(
    words, qzeros, scales, groups, block, in_features, column, num_columns, ZERO_OFFSET: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of 32 rows: [32, BLOCK_N] fp16. WHOLE_GROUPS: its rows are of one group."""
    q = plane(words, block * 4, in_features // 8, column, num_columns, 4, BLOCK_N)
    row = block * 32 + tl.arange(0, 1 if WHOLE_GROUPS else 32)
    group = tl.load(groups + row, row < in_features, other=0)[:, None]
    inside = (column < num_columns)[None, :]
    codes = tl.load(qzeros + group * (num_columns // 8) + column[None, :] // 8, inside, other=0)
    zero = above_1024((codes >> (column % 8 * 4)[None, :]) & 15) + 1.0 * ZERO_OFFSET
    scale = tl.load(scales + group * num_columns + column[None, :], inside, other=0.0)
    return (above_1024(q) - zero) * scale


@triton.jit(do_not_specialize=["num_tokens"])
def _multiply(
    x,
    out,
    parts,
    counters,
    words,
    qzeros,
    scales,
    groups,
    x_stride,
    num_tokens,
    in_features,
    num_columns,
    ZERO_OFFSET: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    num_blocks = tl.cdiv(in_features, 32)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.arange(0, BLOCK_T)[:, None]
    accumulator = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for block in range(part * num_blocks // num_parts, (part + 1) * num_blocks // num_parts):
        weights = _weights(
            words, qzeros, scales, groups, block, in_features, column, num_columns, ZERO_OFFSET, WHOLE_GROUPS, BLOCK_N
        )
        feature = block * 32 + tl.arange(0, 32)[None, :]
        inside = (token < num_tokens) & (feature < in_features)
        activations = tl.load(x + token * x_stride + feature, inside, other=0.0)
        accumulator = tl.dot(activations, weights.to(activations.dtype), accumulator, input_precision="ieee")
    finish(accumulator, out, parts, counters, num_tokens, num_columns, part, num_parts, BLOCK_T, BLOCK_N)


@triton.jit
def _dequantize(
    out, words, qzeros, scales, groups, in_features, num_columns, first_column, width,
    ZERO_OFFSET: tl.constexpr, WHOLE_GROUPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    column = first_column + tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = block * 32 + tl.arange(0, 32)
    weights = _weights(
        words, qzeros, scales, groups, block, in_features, column, num_columns, ZERO_OFFSET, WHOLE_GROUPS, BLOCK_N
    )
    at = row.to(tl.int64)[:, None] * width + (column - first_column)[None, :]
    tl.store(out + at, weights, (row < in_features)[:, None] & (column < first_column + width)[None, :])


@dataclass(frozen=True)
class GptqMatrix:
    """K in_features, N out_features, G groups."""

    words: Tensor  # [K / 8, N] int32, as in files
    qzeros: Tensor  # [G, N / 8] int32, as in files
    scales: Tensor  # [G, N] float16
    groups: Tensor  # [K] int32: the group of each row
    zero_offset: int
    whole_groups: bool  # no group starts inside a block
    dtype: torch.dtype

    @property
    def in_features(self) -> int:
        return self.groups.shape[0]

    @property
    def out_features(self) -> int:
        return self.words.shape[1]

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in self._tensors)

    def multiply(self, x: Tensor) -> Tensor:
        return launch_product(_multiply, self._tensors, x, self.in_features, self.out_features, **self._constants)

    def dense(self, start: int, stop: int) -> Tensor:
        out = torch.empty(self.in_features, stop - start, dtype=self.dtype, device=self.words.device)
        grid = triton.cdiv(self.in_features, BLOCK_ROWS), triton.cdiv(stop - start, packed.DENSE_COLUMNS)
        _dequantize[grid](
            out,
            *self._tensors,
            self.in_features,
            self.out_features,
            start,
            stop - start,
            BLOCK_N=packed.DENSE_COLUMNS,
            num_warps=4,
            **self._constants,
        )
        return out

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.words, self.qzeros, self.scales, self.groups

    @property
    def _constants(self) -> dict[str, int]:
        return {"ZERO_OFFSET": self.zero_offset, "WHOLE_GROUPS": self.whole_groups}


def prepare(tensor: GptqTensor, prescale: float, device: torch.device, dtype: torch.dtype) -> GptqMatrix:
    """The tensor on the device."""
    groups = tensor.group_of_row.to(device, torch.int32)
    padded = torch.nn.functional.pad(groups, (0, -groups.shape[0] % BLOCK_ROWS), value=int(groups[-1]))
    blocks = padded.view(-1, BLOCK_ROWS)
    scales = tensor.scales if prescale == 1.0 else (tensor.scales.float() * prescale).half()
    return GptqMatrix(
        words=tensor.qweight.to(device),
        qzeros=tensor.qzeros.to(device),
        scales=scales.to(device),
        groups=groups,
        zero_offset=tensor.zero_offset,
        whole_groups=bool((blocks == blocks[:, :1]).all()),
        dtype=dtype,
    )
