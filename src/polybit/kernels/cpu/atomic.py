"""Numbers that threads share: elements of an int64 array, read and written as a whole and in an order all agree on."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from polybit.kernels.cpu.inner import emitted

Value = Any  # of llvmlite, which has no types
Builder = Any


def _place(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
    """The address of an array's element, which the first two arguments are."""
    array = context.make_array(signature.args[0])(context, b, arguments[0])
    return b.gep(array.data, [arguments[1]])


@emitted
def read(typing: Any, array: Any, index: Any) -> Any:
    def emit(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return b.load_atomic(_place(context, b, signature, arguments), "seq_cst", 8)

    return types.int64(array, types.intp), emit


@emitted
def exchange(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """-> what it was."""

    def emit(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return b.atomic_rmw("xchg", _place(context, b, signature, arguments), arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), emit


@emitted
def take_next(typing: Any, array: Any, index: Any) -> Any:
    """-> what it was before one is added: for threads that each take the next piece of work."""

    def emit(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return b.atomic_rmw("add", _place(context, b, signature, arguments), ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(array, types.intp), emit


@emitted
def replace(typing: Any, array: Any, index: Any, before: Any, after: Any) -> Any:
    """-> whether it was `before`, in which case it is `after`."""

    def emit(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        place = _place(context, b, signature, arguments)
        return b.extract_value(b.cmpxchg(place, arguments[2], arguments[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(array, types.intp, types.int64, types.int64), emit
