"""One head's features in a quantized page, in compiled code: the definition is kernels/pages.py's.

Scales come as the bits of fp16 numbers, which Numba does not have on CPUs, and codes as bytes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from polybit.kernels.cpu.arrays import Floats
from polybit.kernels.cpu.bits import ROUNDER
from polybit.kernels.cpu.inner import emitted, inner
from polybit.kernels.pages import LEAST_GROUP, WORD_BITS

Codes = NDArray[np.uint8]
Halves = NDArray[np.uint16]
Places = NDArray[np.int64]

SIGN, INFINITE, NOT_A_NUMBER = 0x8000, 0x7C00, 0x7E00  # in the bits of fp16
LEAST_NORMAL = 0x400
FRACTION = 13  # bits that fp32 has more
REBIASED = 112 << 10  # exponents of fp32 count from 112 lower
UNIT = 2.0**-24  # of the numbers below the least normal one
INT = ir.IntType(WORD_BITS)


@inner()
def turn_row(x: Floats, group: int) -> None:
    """Walsh-Hadamard transform of each group of x [D], in place. Its own inverse."""
    half = 1
    while half < group:
        for first in range(0, len(x), 2 * half):
            for i in range(first, first + half):
                a, b = x[i], x[i + half]
                x[i], x[i + half] = a + b, a - b
        half *= 2
    size = np.float32(1 / np.sqrt(group))
    for i in range(len(x)):
        x[i] *= size


@inner()
def quantize_row(x: Floats, bits: int, codes: Codes, scales: Halves) -> None:
    """x [D], turned -> codes [D * bits / 8] and scales [D / group]"""
    group, half = len(x) // len(scales), np.float32(1 << (bits - 1))
    for g in range(len(scales)):
        low = high = x[g * group]
        for i in range(g * group, (g + 1) * group):
            low, high = (x[i], x[i]) if x[i] != x[i] else (min(low, x[i]), max(high, x[i]))
        scales[g] = _to_half((high if high >= -low else low) / -half)
        step = _from_half(scales[g])
        for i in range(g * group, (g + 1) * group, 8 // bits):
            byte = 0
            for j in range(8 // bits):
                level = np.float32(0) if step == 0 else x[i + j] / step
                code = np.floor(level + np.float32(0.5)) + half
                byte |= int(min(max(code, np.float32(0)), 2 * half - 1) if code == code else 0) << (j * bits)
            codes[i * bits // 8] = byte


@inner()
def _to_half(value: np.float32) -> int:
    """Rounded to nearest, half to even; too large is infinite."""
    if value != value:
        return NOT_A_NUMBER
    size = int(np.float32(abs(value)).view(np.int32))
    if size >> FRACTION < REBIASED + LEAST_NORMAL:
        bits = int(abs(value) / np.float32(UNIT) + ROUNDER - ROUNDER)
    else:
        rounded = size + (1 << (FRACTION - 1)) - 1 + (size >> FRACTION & 1)
        bits = min((rounded >> FRACTION) - REBIASED, INFINITE)
    return bits | SIGN if value < 0 else bits


@inner()
def dequantize_rows(codes: Codes, scales: Halves, bits: int, rows: Places, out: Floats) -> None:
    """Those of codes [R, D * bits / 8] and scales [R, D / group] -> out [len(rows), D], still turned."""
    num_groups, dim = scales.shape[1], out.shape[1]
    group = dim // num_groups
    for i in range(len(rows)):
        row = rows[i]  # once, and not again for each store of numbers that might have changed it
        for g in range(num_groups):
            for d in range(g * group, (g + 1) * group, LEAST_GROUP):
                if bits == 4:
                    _unpack_4(codes, row * dim + d, scales, row * num_groups + g, out, i * dim + d)
                else:
                    _unpack_8(codes, row * dim + d, scales, row * num_groups + g, out, i * dim + d)


def _unpack(bits: int) -> Any:
    """Compiled code for levels times their scale: LEAST_GROUP features, `first` of all codes and `place` of all of out.

    Arrays stand for their memory: passing a part of one on takes longer than this.
    """
    lanes, words = range(LEAST_GROUP), LEAST_GROUP * bits // WORD_BITS
    integers, floats = ir.VectorType(INT, LEAST_GROUP), ir.VectorType(ir.FloatType(), LEAST_GROUP)

    @emitted
    def unpack(typing: Any, codes: Any, first: Any, scales: Any, group: Any, out: Any, place: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, values: Sequence[Any]) -> Any:
            codes, scales, out = (context.make_array(signature.args[i])(context, b, values[i]).data for i in (0, 2, 4))
            first, group, place = values[1], values[3], values[5]
            at = b.gep(codes, [b.udiv(b.mul(first, first.type(bits)), first.type(8))])
            found = b.load(b.bitcast(at, ir.VectorType(INT, words).as_pointer()), align=4)
            spread = b.shuffle_vector(found, found, integers([i * bits // WORD_BITS for i in lanes]))
            fields = b.lshr(spread, integers([i * bits % WORD_BITS for i in lanes]))
            unsigned = b.and_(fields, integers([(1 << bits) - 1] * LEAST_GROUP))
            levels = b.sitofp(b.sub(unsigned, integers([1 << bits - 1] * LEAST_GROUP)), floats)
            scale = _widened(b, b.load(b.gep(scales, [group])))
            one = b.insert_element(floats(ir.Undefined), scale, INT(0))
            scaled = b.fmul(levels, b.shuffle_vector(one, one, integers([0] * LEAST_GROUP)))
            b.store(scaled, b.bitcast(b.gep(out, [place]), floats.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(codes, types.intp, scales, types.intp, out, types.intp), emit

    return unpack


def _widened(b: Any, half: Any) -> Any:
    """fp32 of the bits of an fp16 number, by arithmetic that every processor has; what is not finite becomes NaN."""
    number, half = ir.FloatType(), b.zext(half, INT)
    size = b.and_(half, INT(SIGN - 1))
    normal = b.bitcast(b.shl(b.add(size, INT(REBIASED)), INT(FRACTION)), number)
    small = b.fmul(b.uitofp(size, number), number(UNIT))
    finite = b.select(b.icmp_unsigned("<", size, INT(LEAST_NORMAL)), small, normal)
    value = b.select(b.icmp_unsigned("<", size, INT(INFINITE)), finite, number(float("nan")))
    sign = b.shl(b.and_(half, INT(SIGN)), INT(16))
    return b.bitcast(b.or_(b.bitcast(value, INT), sign), number)


@emitted
def _from_half(typing: Any, half: Any) -> Any:
    def emit(context: Any, b: Any, signature: Any, values: Sequence[Any]) -> Any:
        return _widened(b, values[0])

    return types.float32(types.uint16), emit


_unpack_4, _unpack_8 = _unpack(4), _unpack(8)
