"""A head's features of one token are a row of pages: how compiled kernels find, read and store those of either kind.

Kernels are compiled for the kinds of pages that come, so that nobody waits for what is not used. In quantized pages
rows are turned, and so are the queries that meet them and what is mixed of them.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numba import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels.cpu.arrays import Floats, Ints
from polybit.kernels.cpu.inner import BARE, inner
from polybit.kernels.cpu.quantized import Codes, Halves, Places, dequantize_rows, quantize_row, turn_row
from polybit.kernels.pages import Pages, tensors_of

Rows = Floats | tuple[Codes, Halves, int]  # [pages * P * Hkv, D]; codes, scales, and bits
Shape = tuple[int, int]  # P, Hkv
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def are_served(pages: Pages) -> bool:
    """Quantized or not, but not of 16 bits; and each tensor one stretch of memory."""
    if isinstance(pages, Tensor):
        return pages.dtype == torch.float32 and pages.is_contiguous()
    return pages.codes.is_contiguous() and pages.scales.is_contiguous()


def rows_of(pages: Pages) -> Rows:
    if isinstance(pages, Tensor):
        return _flat(pages)
    return _flat(pages.codes).view(np.uint8), _flat(pages.scales).view(np.uint16), pages.bits


def _flat(pages: Tensor) -> NDArray[Any]:
    return pages.numpy().reshape(-1, pages.shape[3])


def shape_of(pages: Pages) -> Shape:
    _, page_tokens, num_heads, _ = tensors_of(pages)[0].shape
    return page_tokens, num_heads


@inner()
def locate(table: Ints, shape: Shape, head: int, first: int, places: Places) -> None:
    """The rows of a sequence's tokens from `first` on."""
    page_tokens, num_heads = shape
    index, token = first // page_tokens, first % page_tokens
    for i in range(len(places)):
        places[i] = (table[index] * page_tokens + token) * num_heads + head
        token += 1
        if token == page_tokens:
            index, token = index + 1, 0


@inner()
def copy(x: Floats, out: Floats) -> None:
    """Element by element: an assignment of slices compiles, for a second, what it says where shapes differ."""
    for i in range(len(x)):
        out[i] = x[i]


def _themselves(rows: Any, places: Places, space: Floats) -> Floats:
    found: Floats = rows
    return found


def _dequantized(rows: Any, places: Places, space: Floats) -> Floats:
    codes, scales, bits = rows
    dequantize_rows(codes, scales, bits, places, space)
    for i in range(len(places)):
        places[i] = i
    return space


def _copy_in(rows: Any, place: int, x: Floats, space: Floats) -> None:
    for i in range(len(x)):
        rows[place, i] = x[i]


def _quantize_in(rows: Any, place: int, x: Floats, space: Floats) -> None:
    codes, scales, bits = rows
    copy(x, space)
    turn_row(space, len(x) // scales.shape[1])
    quantize_row(space, bits, codes[place], scales[place])


def _as_they_are(rows: Any, x: Floats, space: Floats) -> Floats:
    return x


def _turned(rows: Any, x: Floats, space: Floats) -> Floats:
    for h in range(len(x)):
        copy(x[h], space[h])
    turn_back(rows, space)
    return space


def _leave(rows: Any, x: Floats) -> None:
    pass


def _turn(rows: Any, x: Floats) -> None:
    for h in range(len(x)):
        turn_row(x[h], x.shape[1] // rows[1].shape[1])


def _by_kind(plain: Kernel, quantized: Kernel) -> Kernel:
    """What compiled code calls with rows first: the one for their kind."""

    def chosen(rows: Rows, *others: Any) -> Any:
        raise TypeError("only compiled code calls this")

    def choose(rows: Any, *others: Any) -> Any:
        return plain if isinstance(rows, types.Array) else quantized

    overload(chosen, BARE, strict=False)(choose)
    return cast(Kernel, chosen)


# (rows, places, space [len(places), D]): an array with the rows at `places`, turned as they are stored. It may be
# `space`, and `places` are those in the array afterwards.
read_rows = _by_kind(_themselves, _dequantized)
# (rows, place, x [D], space [D])
store_row = _by_kind(_copy_in, _quantize_in)
# (rows, x [heads, D], space [heads, D]): x turned as rows are, which may be in `space`.
turned_for = _by_kind(_as_they_are, _turned)
# (rows, x [heads, D]): what is mixed of rows, in place.
turn_back = _by_kind(_leave, _turn)
