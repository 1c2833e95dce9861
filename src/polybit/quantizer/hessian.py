"""Second moments of a matrix's inputs, and the factorization that error feedback reads them through (format 9.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.errors import CalibrationError

MIN_DAMPING = 1e-5
MAX_ATTEMPTS = 10
SOLVED_AT_ONCE = 512  # rows: enough for a GPU, few enough that nearly all work is in products


class Hessian:
    """Sum of w x^T x over tokens x of weight w, in fp32; or of w x^T y, where each x comes with a y."""

    def __init__(self, features: int, device: torch.device, token_weights: Tensor | None = None) -> None:
        """token_weights [T]: of all tokens that will be added, in their order; None: one each."""
        self._weights = token_weights
        self._sum = torch.zeros(features, features, dtype=torch.float32, device=device)
        self.num_tokens = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """x and y [T, K]"""
        x = x.float()
        seen = slice(self.num_tokens, self.num_tokens + len(x))
        weighted = x if self._weights is None else x * self._weights[seen, None]
        self._sum.addmm_(weighted.T, x if y is None else y)
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

    def solve(self, y: Tensor) -> Tensor:
        """The inverse of the damped H times y, [K, N]."""
        solved = torch.empty_like(y)
        solved[self.perm] = self.upper.T @ (self.upper @ y[self.perm])
        return solved

    def to(self, device: torch.device) -> "Factor":
        return Factor(self.perm.to(device), self.upper.to(device))


@dataclass(frozen=True)
class Rows:
    """What of a factor says how much each row matters."""

    perm: Tensor  # [K] int64
    weights: Tensor  # [K]


def factorize(h: Tensor, damping: float, where: str) -> Factor:
    """h [K, K] -> its order and factor, once `damping` times its mean diagonal is added to it.

    `where` names the matrix in the error where no damping makes h invertible.
    """
    perm = _order(h)
    return Factor(perm, _retried(_inverse_factor, h, perm, damping, where))


def weigh_rows(h: Tensor, damping: float, where: str) -> Rows:
    """The order and the row weights of the factor that `factorize` would find; a GPU need not invert for these."""
    if h.device.type != "cuda":
        factor = factorize(h, damping, where)
        return Rows(factor.perm, factor.row_weights)
    perm = _order(h)
    return Rows(perm, _retried(_pivots, h, perm, damping, where))


def _order(h: Tensor) -> Tensor:
    return h.diagonal().argsort(descending=True, stable=True)


def _retried(
    find: Callable[[Tensor, Tensor, float, int], Tensor | None], h: Tensor, perm: Tensor, damping: float, where: str
) -> Tensor:
    """What is found with the least damping that makes h positive definite."""
    for times in range(1, MAX_ATTEMPTS + 1):
        found = find(h, perm, damping, times)
        if found is not None:
            return found
    raise CalibrationError(
        f"{where}: the Hessian of its inputs is not positive definite after adding {damping:g} of its mean diagonal "
        f"{MAX_ATTEMPTS} times; the activations are damaged or the calibration text is degenerate, use more or other "
        "text"
    )


def _inverse_factor(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor | None:
    """U with h^-1 = U^T U of h sorted and damped, or None where that is numerically not positive definite.

    No more than two matrices beside h live at a time.
    """
    upper = (_by_flipping if h.device.type == "cuda" else _by_inverting)(h, perm, damping, times)
    return upper if upper is not None and _is_finite(upper) else None


def _is_finite(tensor: Tensor) -> bool:
    lowest, highest = tensor.aminmax()  # NaN where any element is
    return bool(lowest.isfinite() and highest.isfinite())


def _by_inverting(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor | None:
    """U factors the inverse: 4/3 K^3 multiplications, all in LAPACK."""
    lower, failed = torch.linalg.cholesky_ex(_damped(h, perm, damping, times))
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if failed else upper.contiguous()


def _by_flipping(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor | None:
    """U is L^-1 put back in order: half of that, mostly products."""
    lower = _flipped_cholesky(h, perm, damping, times)
    if lower is None:
        return None
    inverse = lower.contiguous()
    del lower
    _invert_lower(inverse)
    return inverse.flip(0, 1)


def _pivots(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor | None:
    """[K]: 1 / U_ii^2, or None as _inverse_factor. The diagonal of L^-1 is one over that of L."""
    lower = _flipped_cholesky(h, perm, damping, times)
    if lower is None:
        return None
    pivots = lower.diagonal().flip(0).square()
    return pivots if _is_finite(pivots) else None


def _flipped_cholesky(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor | None:
    """L with L L^T = h sorted and damped, its rows and columns in reverse order."""
    lower, failed = torch.linalg.cholesky_ex(_damped(h, perm.flip(0), damping, times))
    return None if failed else lower


def _invert_lower(lower: Tensor) -> None:
    """In place, [K, K] triangular: the inverse of [[A, 0], [B, C]] is [[A^-1, 0], [-C^-1 B A^-1, C^-1]]."""
    size = len(lower)
    if size <= SOLVED_AT_ONCE:
        identity = torch.eye(size, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(first)
    _invert_lower(last)
    below.copy_(last @ (below @ first)).neg_()


def _damped(h: Tensor, perm: Tensor, damping: float, times: int) -> Tensor:
    """A sorted copy with `damping` of its mean diagonal added to it so many times."""
    damped = h[perm][:, perm]
    step = max(damping * float(damped.diagonal().mean()), MIN_DAMPING)
    for _ in range(times):
        damped.diagonal().add_(step)
    return damped
