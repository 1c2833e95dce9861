"""The inner loops of quantization, behind one Protocol, and which implementation serves a device."""

import logging
from typing import Protocol

import torch
from torch import Tensor

from polybit.kernels.reference import rounding as reference

log = logging.getLogger(__name__)


class Rounding(Protocol):
    """A module with these loops. Tensors are fp32 and on one device unless said otherwise."""

    NAME: str

    def factor_errors(self, x: Tensor, trial: Tensor, factors: Tensor, bits: int) -> Tensor:
        """What each common factor of a group's scales would cost.

        x [R, N], trial [N], factors [C] -> [C] fp64: the sum over x of |round(x / s) s - x|^3.5, s = trial * factor.
        """

    def round_rows(self, w: Tensor, scale: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """Round a group's rows in order, each row's error fed back to those below it (format 9.4). Destroys w.

        w [R, N], scale [N] of fp16 values, upper [R, R] -> q [R, N] uint8, dense [R, N] of fp16 values, errors [R, N].
        """

    def scale_costs(
        self, x: Tensor, row_weights: Tensor, column_weights: Tensor, table: Tensor, bits: int, window: int
    ) -> tuple[Tensor, Tensor]:
        """What each candidate for the scale maximum of each group would cost, with the best code for each column.

        x [G, R, N], row_weights [G, R], column_weights [N], table [G, C, 16] the ascending scales of each candidate's
        codes -> costs [G, C] fp64, codes [G, C, N] uint8. A cost is the weighted sum of (round(x / s) s - x)^2. A
        column tries `window` codes, downward from the first whose scale reaches max|x| / (2^(bits-1) - 0.5).
        """

    def descend_rows(self, residual: Tensor, dense: Tensor, scale: Tensor, h: Tensor, bits: int) -> Tensor:
        """One pass of coordinate descent over a group's rows: each moves to its best level, the others as they are.

        residual [R, N] is the group's part of H (W - D), dense [R, N] of D: the latter is updated, the former used up.
        scale [N] of fp16 values, h [R, R] the group's part of H, its diagonal positive -> q [R, N] uint8.
        """


def choose_rounding(device: torch.device) -> Rounding:
    """Numba's loops on a CPU, Triton's kernels on a GPU, plain torch where these are not installed; says which."""
    chosen = {"cpu": _numba_rounding, "cuda": _triton_rounding}.get(device.type, lambda: None)()
    if chosen is not None:
        log.info("rounding: %s", chosen.NAME)
        return chosen
    missing = {"cpu": "; pip install 'polybit[cpu]' makes it several times faster", "cuda": "; Triton is missing"}
    log.info("rounding: plain torch%s", missing.get(device.type, ""))
    return reference


def _numba_rounding() -> Rounding | None:
    try:
        from polybit.kernels.cpu import rounding
    except ImportError:
        return None
    return rounding


def _triton_rounding() -> Rounding | None:
    try:
        from polybit.kernels.triton import rounding
    except ImportError:
        return None
    return rounding
