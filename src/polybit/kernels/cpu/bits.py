"""Numbers by their bits: an int32's taken for a float32 in a register, and what rounds one by its last bit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from polybit.kernels.cpu.inner import emitted

ROUNDER = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to the nearest integer, half to even


@emitted
def from_bits(typing: Any, bits: Any) -> Any:
    """The float32 of an int32's bits. An array's other view would be memory to ask for."""

    def emit(context: Any, b: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return b.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), emit
