"""Second moments of a matrix's inputs, and the factorization that error feedback reads them through (format 9.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.errors import CalibrationError

MIN_DAMPING = 1e-5
MAX_ATTEMPTS = 10


class Hessian:
    """Sum of w x^T x over tokens x of weight w, in fp32."""

    def __init__(self, features: int, device: torch.device, token_weights: Tensor | None = None) -> None:
        """token_weights [T]: of all tokens that will be added, in their order; None: one each."""
        self._weights = token_weights
        self._sum = torch.zeros(features, features, dtype=torch.float32, device=device)
        self.num_tokens = 0

    def add(self, x: Tensor) -> None:
        """x [T, K]"""
        x = x.float()
        seen = slice(self.num_tokens, self.num_tokens + len(x))
        weighted = x if self._weights is None else x * self._weights[seen, None]
        self._sum.addmm_(weighted.T, x)
        self.num_tokens += len(x)

    def mean(self, num_rows: int) -> Tensor:
        """[K, K], the sum over the number of calibration rows (not tokens); the identity where no token was seen.

        Uses the sum up: a second one as large would be 3 GB of a 70B.
        """
        if self.num_tokens == 0:
            return torch.eye(len(self._sum), device=self._sum.device)
        return self._sum.div_(num_rows)


def shrink(h: Tensor, shrinkage: float) -> Tensor:
    """h [K, K] with its off-diagonals reduced by the share `shrinkage`.

    Calibration sees some thousand tokens of text unlike what the model will read. Scales of features carry over to
    other text, their correlations only in part; feedback that trusts them fully fits the calibration text (covariance
    shrinkage, Ledoit and Wolf 2004).
    """
    if not shrinkage:
        return h
    shrunk = h * (1 - shrinkage)
    shrunk.diagonal().copy_(h.diagonal())
    return shrunk


@dataclass(frozen=True)
class Factor:
    """What rounding needs of a Hessian; one factor serves every matrix that shares the input, and every layout."""

    perm: Tensor  # [K] int64, input features by descending diagonal of H
    upper: Tensor  # [K, K] fp32, upper Cholesky factor of the inverse of the damped, permuted H

    @property
    def row_weights(self) -> Tensor:
        """[K]: what a squared error of each row costs, once feedback has made up for it as far as it can."""
        return self.upper.diagonal().square().reciprocal()

    def to(self, device: torch.device) -> "Factor":
        return Factor(self.perm.to(device), self.upper.to(device))


def factorize(h: Tensor, damping: float, where: str) -> Factor:
    """h [K, K] -> its order and factor, once `damping` times its mean diagonal is added to it.

    `where` names the matrix in the error where no damping makes h invertible.
    """
    perm = h.diagonal().argsort(descending=True, stable=True)
    for attempt in range(MAX_ATTEMPTS):
        upper = _inverse_factor(h, perm, damping, attempt + 1)
        if upper is not None:
            return Factor(perm, upper)
    raise CalibrationError(
        f"{where}: the Hessian of its inputs is not positive definite after adding {damping:g} of its mean diagonal "
        f"{MAX_ATTEMPTS} times; the activations are damaged or the calibration text is degenerate, use more or other "
        "text"
    )


def _inverse_factor(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor | None:
    """U with h^-1 = U^T U of h sorted and damped, or None where that is numerically not positive definite.

    No more than two matrices beside h live at a time.
    """
    lower, failed = torch.linalg.cholesky_ex(_damped(h, perm, damping, times))
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    del inverse
    lowest, highest = upper.aminmax()  # NaN where any element is
    return upper.contiguous() if not failed and lowest.isfinite() and highest.isfinite() else None


def _damped(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor:
    """A sorted copy with `damping` of its mean diagonal added to it so many times."""
    damped = h[perm][:, perm]
    step = max(damping * float(damped.diagonal().mean()), MIN_DAMPING)
    for _ in range(times):
        damped.diagonal().add_(step)
    return damped
