"""A number that threads count up together, so that each takes the next piece of work when it is done with its last."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def take_next(typing, counter):  # type: ignore[no-untyped-def]  # they are Numba types
    """counter [1] int64 -> what it was, one less than it is then."""

    def emit(context: Any, b: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        place = context.make_array(signature.args[0])(context, b, arguments[0]).data
        return b.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), emit
