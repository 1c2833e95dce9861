"""Which bits a matrix may get: parameter sets as data, and the options that measuring tries (format 8.3, 9.1, 10.3).

A parameter set is a recipe in shares of the rows; with a matrix's in_features it becomes a layout of whole groups.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polybit.errors import JobError
from polybit.format.exl2 import WIDTHS, Group, Layout


@dataclass(frozen=True)
class ParameterSet:
    """Bits in descending order, the share of sorted rows that each gets, and its group size."""

    bits: tuple[int, ...]
    shares: tuple[float, ...]
    group_sizes: tuple[int, ...]

    def layout(self, in_features: int) -> Layout:
        """Higher widths are rounded up to whole groups, and the last group takes what remains (format 9.1)."""
        left, groups = in_features, list[Group]()
        for bits, share, size in zip(self.bits, self.shares, self.group_sizes, strict=True):
            for _ in range(math.ceil(min(in_features * share, left) / size)):
                groups.append(Group(bits, min(size, left)))
                left -= groups[-1].rows
        assert left == 0, f"{self.describe()} leaves {left} of {in_features} rows without bits"
        return Layout(tuple(groups))

    def describe(self) -> str:
        """`0.1:4b_128g/0.9:3b_128g s4`: shares, bits, group sizes, bits of a scale."""
        parts = zip(self.shares, self.bits, self.group_sizes, strict=True)
        return "/".join(f"{share:g}:{bits}b_{size}g" for share, bits, size in parts) + " s4"

    def to_json(self) -> dict[str, Any]:
        """The shape of a measurement file (format 10.4)."""
        return {
            "group_size": {str(bits): size for bits, size in zip(self.bits, self.group_sizes, strict=True)},
            "bits": list(self.bits),
            "bits_prop": [1] if len(self.bits) == 1 else list(self.shares),
            "scale_bits": 4,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> "ParameterSet":
        """Also takes group_size as one number or as a list parallel to bits. Raises JobError, naming `where`."""
        try:
            bits = tuple(int(b) for b in value["bits"])
            shares = tuple(float(share) for share in value["bits_prop"])
            sizes = _group_sizes(value["group_size"], bits)
        except (KeyError, TypeError, ValueError):
            raise JobError(f"{where} is not a parameter set of bits, bits_prop and group_size; measure again") from None
        if not _is_sound(bits, shares, sizes) or value.get("scale_bits", 4) != 4:
            raise JobError(
                f"{where} holds bits {bits}, shares {shares} and group sizes {sizes}; expected descending bits out of "
                f"{WIDTHS}, shares that sum to 1, group sizes that are multiples of 32, scale_bits 4; measure again"
            )
        return cls(bits, shares, sizes)


def _group_sizes(value: Any, bits: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(value, Mapping):
        return tuple(int(value[str(b)]) for b in bits)
    if isinstance(value, list):
        return tuple(int(size) for size in value)
    return (int(value),) * len(bits)


def _is_sound(bits: tuple[int, ...], shares: tuple[float, ...], sizes: tuple[int, ...]) -> bool:
    return (
        len(bits) == len(shares) == len(sizes) > 0
        and list(bits) == sorted(set(bits) & set(WIDTHS), reverse=True)
        and all(share > 0 for share in shares)
        and math.isclose(sum(shares), 1.0)
        and all(size > 0 and size % 32 == 0 for size in sizes)
    )


def parameter_set(text: str) -> ParameterSet:
    """Read the short notation of the tables below: `5%x6b/g32 + 95%x3b/g64`."""
    parts = [part.replace("%x", " ").replace("b/g", " ").split() for part in text.split("+")]
    shares, bits, sizes = zip(*((float(share), int(b), int(size)) for share, b, size in parts), strict=True)
    return ParameterSet(bits, tuple(share / 100 for share in shares), sizes)


Option = Mapping[str, ParameterSet]  # by role: q, k, v, o of an attention; gate, up, down of an MLP


def _attention(q_and_k: str, v: str, o: str) -> Option:
    return {
        "q": parameter_set(q_and_k),
        "k": parameter_set(q_and_k),
        "v": parameter_set(v),
        "o": parameter_set(o),
    }


def _mlp(gate: str, up: str, down: str) -> Option:
    return {"gate": parameter_set(gate), "up": parameter_set(up), "down": parameter_set(down)}


_2S = "5%x3b/g64 + 95%x2b/g64"
_2M = "10%x3b/g64 + 90%x2b/g64"
_2L = "25%x3b/g64 + 75%x2b/g64"
_3_128 = "10%x4b/g128 + 90%x3b/g128"
_3_64 = "10%x4b/g64 + 90%x3b/g64"
_4_128, _4_64, _4_32 = "100%x4b/g128", "100%x4b/g64", "100%x4b/g32"
_5_128, _5_64, _5_32 = "10%x5b/g128 + 90%x4b/g128", "10%x5b/g64 + 90%x4b/g64", "10%x5b/g32 + 90%x4b/g32"
_6_128, _6_32, _8_128 = "100%x6b/g128", "100%x6b/g32", "100%x8b/g128"

# The order of both tables is that of a measurement file's entries.
ATTENTION_OPTIONS: tuple[Option, ...] = (
    _attention(_2S, _2S, _2S),
    _attention(_2M, _2L, _2M),
    _attention(_2M, _3_128, _2M),
    _attention(_2M, _3_128, _3_128),
    _attention(_3_128, _3_128, _3_128),
    _attention(_3_128, _3_64, _3_128),
    _attention(_4_128, _4_128, _4_128),
    _attention(_4_128, _4_64, _4_128),
    _attention(_4_64, _4_32, _4_64),
    _attention(_4_32, _4_32, _4_32),
    _attention(_5_128, _5_64, _5_128),
    _attention(_5_64, _5_32, _5_64),
    _attention(_5_64, "100%x5b/g64", _5_64),
    _attention(_5_32, "100%x5b/g32", _5_32),
    _attention("10%x6b/g128 + 90%x5b/g128", _6_128, "10%x6b/g128 + 90%x5b/g128"),
    _attention("10%x6b/g32 + 90%x5b/g32", _6_32, "10%x6b/g32 + 90%x5b/g32"),
    _attention(_6_128, _6_128, _6_128),
    _attention(_6_32, "100%x8b/g32", _6_32),
    _attention(_8_128, _8_128, _8_128),
)

_DOWN_2 = "5%x6b/g32 + 20%x3b/g64 + 75%x2b/g64"
_6_8 = "10%x8b/g128 + 90%x6b/g128"

MLP_OPTIONS: tuple[Option, ...] = (
    _mlp(_2S, _2S, _DOWN_2),
    _mlp(_2M, _2L, _DOWN_2),
    _mlp(_2M, "30%x3b/g64 + 70%x2b/g64", "5%x5b/g32 + 95%x3b/g32"),
    _mlp(_2M, "30%x3b/g64 + 70%x2b/g64", "5%x5b/g32 + 95%x4b/g32"),
    _mlp(_3_128, "25%x4b/g128 + 75%x3b/g128", "5%x8b/g32 + 10%x4b/g128 + 85%x3b/g128"),
    _mlp("10%x4b/g32 + 90%x3b/g32", "25%x4b/g32 + 75%x3b/g32", "5%x8b/g32 + 10%x4b/g32 + 85%x3b/g32"),
    _mlp("10%x4b/g32 + 90%x3b/g32", "25%x4b/g32 + 75%x3b/g32", "5%x8b/g32 + 95%x4b/g128"),
    _mlp(_4_128, _4_32, "5%x8b/g32 + 95%x4b/g128"),
    _mlp(_4_32, _4_32, "5%x8b/g32 + 95%x4b/g32"),
    _mlp(_5_128, "25%x5b/g128 + 75%x4b/g128", "5%x8b/g32 + 10%x5b/g128 + 85%x4b/g128"),
    _mlp(_5_32, "25%x5b/g32 + 75%x4b/g32", "5%x8b/g32 + 10%x5b/g32 + 85%x4b/g32"),
    _mlp("10%x6b/g128 + 90%x5b/g128", "25%x6b/g128 + 75%x5b/g128", "5%x8b/g32 + 10%x6b/g128 + 85%x5b/g128"),
    _mlp("10%x6b/g32 + 90%x5b/g32", "25%x6b/g32 + 75%x5b/g32", "5%x8b/g32 + 10%x6b/g32 + 85%x5b/g32"),
    _mlp(_6_128, _6_128, "5%x8b/g32 + 95%x6b/g128"),
    _mlp(_6_8, _6_8, "15%x8b/g128 + 85%x6b/g128"),
    _mlp(_6_8, _6_8, _8_128),
    _mlp(_8_128, _8_128, _8_128),
)

HEAD_SETS: Mapping[int, ParameterSet] = {
    2: parameter_set("30%x4b/g32 + 70%x2b/g32"),
    3: parameter_set("15%x4b/g32 + 85%x3b/g32"),
    4: parameter_set("15%x6b/g32 + 85%x4b/g32"),
    5: parameter_set("15%x6b/g128 + 85%x5b/g128"),
    6: parameter_set("15%x8b/g128 + 85%x6b/g128"),
    8: parameter_set("100%x8b/g128"),
}
