"""EXL2: one quantized linear as it lies on disk, its validation, and the exact arithmetic that turns it into numbers.

Rows are input features, sorted by importance; `perm[i]` is the input feature at sorted row i. Consecutive sorted rows
form groups of one bit width, widths descending. A weight is `(q - 2^(bits-1)) * scale` with
`scale = (code + 1)^2 * scale_max / 256`, rounded to binary16 at fixed places, subnormals included: programs agree on a
file to the last bit only if these roundings do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

import torch
from torch import Tensor

from polybit import spec
from polybit.format.checkpoint import Checkpoint
from polybit.format.packing import (
    BLOCK_ROWS,
    CODE_BITS,
    CODES_PER_WORD,
    WIDTHS,
    pack_codes,
    pack_rows,
    unpack_codes,
    unpack_rows,
)

__all__ = [
    "WIDTHS",
    "Exl2Tensor",
    "Group",
    "Layout",
    "Span",
    "dequantize",
    "encode",
    "encode_layout",
    "group_scales",
    "pack_codes",
    "pack_rows",
    "read",
    "read_layout",
    "storage_bits",
    "to_tensors",
    "unpack_codes",
    "unpack_rows",
]

COLUMN_MULTIPLE = 32  # files hold out_features rounded up to this


# ---- what a matrix is made of


@dataclass(frozen=True)
class Group:
    """`rows` consecutive sorted rows that share one bit width, one maximum scale, and one scale code a column."""

    bits: int
    rows: int

    @property
    def packed_rows(self) -> int:
        return self.rows * self.bits // 32


@dataclass(frozen=True)
class Span:
    """Neighbouring groups of one bit width, which pack and unpack as one: sorted and packed rows [start, stop)."""

    bits: int
    rows: slice
    packed_rows: slice


@dataclass(frozen=True)
class Layout:
    """The groups of a matrix in order of sorted rows: bits descending, rows a multiple of 32. ValueError: not so."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        fault = _layout_fault(self.groups)
        if fault is not None:
            raise ValueError(fault)

    @property
    def in_features(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def packed_rows(self) -> int:
        return sum(group.packed_rows for group in self.groups)

    def spans(self) -> Iterator[Span]:
        """One span for each bit width in use, widest first."""
        row = packed = 0
        for bits, members in groupby(self.groups, key=lambda group: group.bits):
            rows = sum(group.rows for group in members)
            packed_rows = rows * bits // 32
            yield Span(bits, slice(row, row + rows), slice(packed, packed + packed_rows))
            row += rows
            packed += packed_rows


@dataclass(frozen=True, eq=False)
class Exl2Tensor:
    """One quantized linear, exactly as on disk. K in_features, N out_features with padding, R packed rows, G groups."""

    q_weight: Tensor  # [R, N] int32
    q_scale: Tensor  # [G, N / 8] int32
    q_scale_max: Tensor  # [G] float16
    q_groups: Tensor  # [2 G] int16: pairs of bits and first packed row
    q_invperm: Tensor  # [K] int32: the sorted row that holds each input feature
    bias: Tensor | None = None  # [N] float16

    @property
    def in_features(self) -> int:
        return self.q_invperm.shape[0]

    @property
    def out_features(self) -> int:
        return self.q_weight.shape[1]

    @cached_property
    def layout(self) -> Layout:
        return _decode_layout(self.q_groups.tolist(), self.q_weight.shape[0])

    @property
    def perm(self) -> Tensor:
        """[K] int64: the input feature at each sorted row."""
        features = torch.arange(self.in_features, device=self.q_invperm.device)
        return torch.empty_like(features).scatter_(0, self.q_invperm.long(), features)

    @property
    def num_bits(self) -> int:
        """Bits stored, overheads included; padded columns count."""
        return storage_bits(self.layout, self.out_features, self.bias is not None)

    @property
    def num_bytes(self) -> int:
        return self.num_bits // 8

    def to(self, device: torch.device) -> "Exl2Tensor":
        """The same matrix on another device."""
        return Exl2Tensor(
            q_weight=self.q_weight.to(device),
            q_scale=self.q_scale.to(device),
            q_scale_max=self.q_scale_max.to(device),
            q_groups=self.q_groups.to(device),
            q_invperm=self.q_invperm.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )

    def columns(self, start: int, stop: int) -> "Exl2Tensor":
        """Output columns [start, stop), multiples of 8, as views; the bias stays behind."""
        codes = slice(start // CODES_PER_WORD, stop // CODES_PER_WORD)
        return Exl2Tensor(
            self.q_weight[:, start:stop], self.q_scale[:, codes], self.q_scale_max, self.q_groups, self.q_invperm
        )


def storage_bits(layout: Layout, out_features: int, bias: bool) -> int:
    """Bits that a matrix of this layout and (padded) width takes on disk, without file headers."""
    num_groups, per_group = len(layout.groups), 16 + 32  # scale_max, and the pair in q_groups
    weights = layout.packed_rows * 32 * out_features
    scales = num_groups * CODE_BITS * out_features
    return weights + scales + num_groups * per_group + 32 * layout.in_features + (16 * out_features if bias else 0)


# ---- arithmetic


def group_scales(scale_codes: Tensor, scale_max: Tensor, prescale: float = 1.0) -> Tensor:
    """Scales in float16 from codes [..., N] (0..15) and maxima [...] float16, one a group.

    Rounds twice: the maximum over 256 (times prescale) to float16, where small ones become subnormal and lose bits, and
    its product with the squared code. The quantizer counts on both.
    """
    factor = torch.full((), prescale / 256, dtype=torch.float32, device=scale_max.device)
    unit = (scale_max.float() * factor).half()
    squares = (scale_codes.to(torch.int32) + 1).square().half()
    return squares * unit[..., None]


def dequantize(tensor: Exl2Tensor, prescale: float = 1.0) -> Tensor:
    """[K, N] float16, rows in the order of input features; equal in every bit to the original's reconstruction."""
    scales = group_scales(unpack_codes(tensor.q_scale), tensor.q_scale_max, prescale)  # [G, N]
    rows_of_group = torch.tensor([group.rows for group in tensor.layout.groups], device=scales.device)
    weights = scales.repeat_interleave(rows_of_group, dim=0)  # [K, N]
    for span in tensor.layout.spans():
        q = unpack_rows(tensor.q_weight[span.packed_rows], span.bits)
        weights[span.rows] *= (q.to(torch.int16) - (1 << (span.bits - 1))).half()
    return weights[tensor.q_invperm.long()]


def encode(
    q: Tensor, codes: Tensor, scale_max: Tensor, layout: Layout, perm: Tensor, bias: Tensor | None = None
) -> Exl2Tensor:
    """Pack q [K, N] (sorted rows, unsigned), codes [G, N] (0..15) and scale_max [G] float16; perm [K], bias [N].

    N is padded to a multiple of 32 with columns of value zero.
    """
    padding = -q.shape[1] % COLUMN_MULTIPLE
    zeros = [q.new_full((span.rows.stop - span.rows.start, padding), 1 << (span.bits - 1)) for span in layout.spans()]
    q = torch.cat([q, torch.cat(zeros)], dim=1)
    codes = torch.nn.functional.pad(codes, (0, padding))
    return Exl2Tensor(
        q_weight=torch.cat([pack_rows(q[span.rows], span.bits) for span in layout.spans()]),
        q_scale=pack_codes(codes),
        q_scale_max=scale_max.half(),
        q_groups=encode_layout(layout).to(q.device),
        q_invperm=torch.argsort(perm).to(torch.int32),
        bias=None if bias is None else torch.nn.functional.pad(bias.half(), (0, padding)),
    )


def to_tensors(key: str, tensor: Exl2Tensor) -> dict[str, Tensor]:
    """The tensors of one linear under the names that files use."""
    named = {
        "q_weight": tensor.q_weight,
        "q_scale": tensor.q_scale,
        "q_scale_max": tensor.q_scale_max,
        "q_groups": tensor.q_groups,
        "q_invperm": tensor.q_invperm,
        "bias": tensor.bias,
    }
    return {f"{key}.{name}": part.contiguous() for name, part in named.items() if part is not None}


# ---- reading


def read(checkpoint: Checkpoint, key: str, expected: spec.Linear | None = None) -> Exl2Tensor:
    """The linear `key`, every tensor of it checked. `expected` adds the model's own shape and whether there is a bias.

    FormatError names the tensor, its file, what it holds and what it should. A `q_perm` beside it follows from the
    inverse and is not read.
    """
    _check_shapes(checkpoint, key)
    tensor = Exl2Tensor(
        q_weight=checkpoint.tensor(f"{key}.q_weight"),
        q_scale=checkpoint.tensor(f"{key}.q_scale"),
        q_scale_max=checkpoint.tensor(f"{key}.q_scale_max"),
        q_groups=checkpoint.tensor(f"{key}.q_groups"),
        q_invperm=checkpoint.tensor(f"{key}.q_invperm"),
        bias=checkpoint.tensor(f"{key}.bias") if f"{key}.bias" in checkpoint else None,
    )
    _check_contents(checkpoint, key, tensor)
    if expected is not None:
        _check_expected(checkpoint, key, tensor, expected)
    return tensor


def read_layout(checkpoint: Checkpoint, key: str) -> Layout:
    """The groups of the linear `key` without its weights. Raises as `read`."""
    try:
        return _decode_layout(checkpoint.tensor(f"{key}.q_groups").tolist(), checkpoint.shape(f"{key}.q_weight")[0])
    except ValueError as error:
        raise checkpoint.damaged(f"{key}.q_groups", str(error)) from error


def _check_shapes(checkpoint: Checkpoint, key: str) -> None:
    """The tensors agree with each other in type and shape: G = len(q_scale_max), K = len(q_invperm), N = columns."""
    checkpoint.check(f"{key}.q_weight", (torch.int32,), (None, None))
    checkpoint.check(f"{key}.q_scale_max", (torch.float16,), (None,))
    checkpoint.check(f"{key}.q_invperm", (torch.int32,), (None,))
    columns = checkpoint.shape(f"{key}.q_weight")[1]
    num_groups = checkpoint.shape(f"{key}.q_scale_max")[0]
    if columns == 0 or columns % CODES_PER_WORD:
        raise checkpoint.damaged(f"{key}.q_weight", f"has {columns} columns, expected a multiple of {CODES_PER_WORD}")
    checkpoint.check(f"{key}.q_scale", (torch.int32,), (num_groups, columns // CODES_PER_WORD))
    checkpoint.check(f"{key}.q_groups", (torch.int16,), (2 * num_groups,))
    if f"{key}.bias" in checkpoint:
        checkpoint.check(f"{key}.bias", (torch.float16,), (columns,))


def _check_contents(checkpoint: Checkpoint, key: str, tensor: Exl2Tensor) -> None:
    """The groups cover exactly the rows, the permutation is one, and every scale is a number."""
    try:
        covered = tensor.layout.in_features
    except ValueError as error:
        raise checkpoint.damaged(f"{key}.q_groups", str(error)) from error
    if covered != tensor.in_features:
        finding = f"covers {covered} rows, but {key}.q_invperm has {tensor.in_features}"
        raise checkpoint.damaged(f"{key}.q_groups", finding)
    if not _is_permutation(tensor.q_invperm):
        raise checkpoint.damaged(f"{key}.q_invperm", f"is not a permutation of 0..{tensor.in_features - 1}")
    if not tensor.q_scale_max.isfinite().all():
        raise checkpoint.damaged(f"{key}.q_scale_max", "holds a value that is not finite")


def _is_permutation(indices: Tensor) -> bool:
    """Whether each of 0..n-1 is there once: n counts of which none is 0. Counting takes no sort and no threads."""
    low, high = indices.aminmax()
    in_range = int(low) >= 0 and int(high) < len(indices)
    return in_range and bool(torch.bincount(indices, minlength=len(indices)).all())


def _check_expected(checkpoint: Checkpoint, key: str, tensor: Exl2Tensor, expected: spec.Linear) -> None:
    """The matrix is the one that the model description asks for."""
    if tensor.in_features != expected.in_features:
        finding = f"covers {tensor.layout.in_features} rows, but in_features is {expected.in_features}"
        raise checkpoint.damaged(f"{key}.q_groups", finding)
    if tensor.out_features not in (expected.padded_out_features, expected.out_features):  # early files are not padded
        finding = f"has {tensor.out_features} columns, expected {expected.padded_out_features}"
        raise checkpoint.damaged(f"{key}.q_weight", finding)
    if tensor.bias is None and expected.bias:
        raise checkpoint.damaged(f"{key}.q_weight", f"comes without {key}.bias, but this layer has one")
    if tensor.bias is not None and not expected.bias:
        raise checkpoint.damaged(f"{key}.bias", "is there, but this layer has none")


# ---- q_groups


def encode_layout(layout: Layout) -> Tensor:
    """[2 G] int16 holding unsigned values."""
    starts = torch.tensor([group.packed_rows for group in layout.groups]).cumsum(0).roll(1)
    starts[0] = 0
    bits = torch.tensor([group.bits for group in layout.groups])
    return torch.stack([bits, starts], dim=1).flatten().to(torch.int16)


def _decode_layout(pairs: list[int], packed_rows: int) -> Layout:
    """ValueError: the pairs do not describe a matrix of so many packed rows."""
    unsigned = [value & 0xFFFF for value in pairs]
    widths, starts = unsigned[0::2], unsigned[1::2]
    if starts[:1] != [0]:
        raise ValueError(f"starts at packed row {starts[0] if starts else 'none'}, expected 0")
    stops = [*starts[1:], packed_rows]
    return Layout(tuple(map(_decode_group, widths, starts, stops)))


def _decode_group(bits: int, start: int, stop: int) -> Group:
    if bits not in WIDTHS:
        raise ValueError(f"holds a group of {bits} bits, expected one of {', '.join(map(str, WIDTHS))}")
    if stop <= start:
        raise ValueError(f"holds a group from packed row {start} to {stop}, which is empty")
    return _group(bits, stop - start)


@cache
def _group(bits: int, packed_rows: int) -> Group:
    """A model has tens of thousands of groups, but few kinds."""
    return Group(bits, packed_rows * 32 // bits)


def _layout_fault(groups: tuple[Group, ...]) -> str | None:
    """What is wrong with a list of groups, as the end of a sentence about it."""
    if not groups:
        return "holds no group"
    for group in groups:
        if group.bits not in WIDTHS:
            return f"holds a group of {group.bits} bits, expected one of {', '.join(map(str, WIDTHS))}"
        if group.rows <= 0 or group.rows % BLOCK_ROWS:
            return f"holds a group of {group.rows} rows, expected a multiple of {BLOCK_ROWS}"
    widths = [group.bits for group in groups]
    if widths != sorted(widths, reverse=True):
        return f"holds groups of {', '.join(map(str, dict.fromkeys(widths)))} bits in this order, expected descending"
    return None
