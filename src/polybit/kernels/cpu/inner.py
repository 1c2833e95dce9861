"""Functions that only compiled ones call."""

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit
from numba.extending import intrinsic

# Without the ways in from Python and C, which take a tenth of compiling.
BARE: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = partial(njit, cache=True, **BARE)


def emitted(definition: Callable[..., Any]) -> Any:
    """One that is LLVM code. Callers leave the definition's first argument to Numba, which type checkers do not see."""
    return intrinsic(definition)
