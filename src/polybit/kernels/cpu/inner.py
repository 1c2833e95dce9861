"""Functions that only compiled ones call: without the ways in from Python and C, which take a tenth of compiling."""

from functools import partial

from numba import njit

inner = partial(njit, cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
