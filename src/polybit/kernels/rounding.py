"""The inner loops of quantization, behind one Protocol, and which implementation serves a device."""

import logging
from typing import Protocol

import torch
from torch import Tensor

from polybit.kernels.reference import rounding as reference
from polybit.kernels.reference.groups import Rounded

log = logging.getLogger(__name__)


class Rounding(Protocol):
    """A module with these loops. Tensors are fp32 and on one device unless said otherwise."""

    NAME: str
    UPDATE_ROWS: int  # groups of so many rows go by before what lies outside them hears of it; 1: after each group

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

    def fit_and_round(
        self,
        w: Tensor,
        row_weights: Tensor,
        column_weights: Tensor,
        shares: Tensor,
        upper: Tensor,
        bits: int,
        window: int,
    ) -> Rounded:
        """round_rows under the scales that cost least among candidates, as scale_costs counts.

        w [R, N], row_weights [R], column_weights [N], shares [C] of the maximum that clips nothing, upper [R, R].
        """

    def descend_group(
        self, residual: Tensor, dense: Tensor, q: Tensor, codes: Tensor, scale_max: Tensor, h: Tensor, bits: int
    ) -> Tensor:
        """Better codes for a group's levels as they are, then one pass over its rows: each moves to its best level.

        residual [R, N] is the group's part of H (W - D), h [R, R] of H, its diagonal positive, dense [R, N] of D;
        q [R, N] uint8, codes [N] uint8, scale_max a scalar in fp16.
        Updates dense, q and codes -> by how much dense moved.
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
