"""Bits taken for a number, in a register: an array's other view would be memory to ask for."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from polybit.kernels.cpu.inner import emitted


@emitted
def from_bits(typing, bits):  # type: ignore[no-untyped-def]  # they are Numba types
    """The float32 of an int32's bits."""

    def emit(context: Any, b: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return b.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), emit
