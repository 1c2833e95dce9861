"""The loops of quantization in plain torch: the oracle, and what runs without Numba or Triton."""

import torch
from torch import Tensor

from polybit.kernels.reference import groups

NAME = "torch"
UPDATE_ROWS = 1

# Elements of a working buffer: small enough for a core's second-level cache, or large enough to fill a GPU.
CPU_BUFFER = 1 << 17
GPU_BUFFER = 1 << 24


def factor_errors(x: Tensor, trial: Tensor, factors: Tensor, bits: int) -> Tensor:
    """x [R, N], trial [N], factors [C] -> [C] fp64; in tiles of columns and factors that stay in cache."""
    limit = CPU_BUFFER if x.device.type == "cpu" else GPU_BUFFER
    width = max(1, limit // len(x))
    errors = torch.zeros(len(factors), dtype=torch.float64, device=x.device)
    for part, trials in zip(torch.split(x, width, dim=1), torch.split(trial, width), strict=True):
        at_once = max(1, limit // part.numel())
        for start in range(0, len(factors), at_once):
            stop = start + at_once
            errors[start:stop] += _tile_errors(part, factors[start:stop, None] * trials, bits)
    return errors


def _tile_errors(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """x [R, n], scale [C, n] -> [C]. Summed in units of a column's scale, which saves a pass over the buffer."""
    zero = 1 << (bits - 1)
    ratio = x * scale.reciprocal()[:, None]  # [C, R, n]
    error = ratio.round().clamp_(-zero, zero - 1).sub_(ratio).abs_()
    root = torch.sqrt(error, out=ratio)  # |e|^3.5 = |e| |e| |e| sqrt|e|: much cheaper than a general power
    sums = root.mul_(error).mul_(error).mul_(error).sum(1)
    return (sums.double() * scale.double().pow(3.5)).sum(1)


def round_rows(w: Tensor, scale: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """w [R, N] (destroyed), scale [N], upper [R, R] -> q [R, N] uint8, dense [R, N], errors [R, N]."""
    zero = 1 << (bits - 1)
    q, dense, errors = torch.empty_like(w), torch.empty_like(w), torch.empty_like(w)
    diagonal = upper.diagonal().tolist()
    for c in range(len(w)):
        q[c] = torch.div(w[c], scale).round_().add_(zero).clamp_(0, 2 * zero - 1)
        q[c].nan_to_num_(nan=2 * zero - 1)  # 0 / 0 where the scale has underflowed: the format's rule
        dense[c] = ((q[c] - zero) * scale).half()
        errors[c] = (w[c] - dense[c]) / diagonal[c]
        w[c + 1 :] -= upper[c, c + 1 :, None] * errors[c]
    return q.to(torch.uint8), dense, errors


def scale_costs(
    x: Tensor, row_weights: Tensor, column_weights: Tensor, table: Tensor, bits: int, window: int
) -> tuple[Tensor, Tensor]:
    """x [G, R, N], row_weights [G, R], column_weights [N], table [G, C, 16] -> costs [G, C] fp64, codes [G, C, N]."""
    found = [_group_costs(*group, column_weights, bits, window) for group in zip(x, row_weights, table, strict=True)]
    costs, codes = zip(*found, strict=True)
    return torch.stack(costs), torch.stack(codes)


def _group_costs(
    x: Tensor, row_weights: Tensor, table: Tensor, column_weights: Tensor, bits: int, window: int
) -> tuple[Tensor, Tensor]:
    """x [R, N], row_weights [R], table [C, 16], column_weights [N] -> costs [C] fp64, codes [C, N] uint8."""
    zero = 1 << (bits - 1)
    base = x.abs().amax(0) / (zero - 0.5)
    costs, chosen = list[Tensor](), list[Tensor]()
    for scales in table:
        first = torch.searchsorted(scales, base).clamp_(max=15)
        codes = (first - torch.arange(window, device=x.device)[:, None]).clamp_(min=0)  # [W, N]
        scale = scales[codes]
        inverse = torch.where(scale > 0, scale.reciprocal(), 0.0)
        levels = (x * inverse[:, None]).clamp_(-zero, zero - 1).round_()  # [W, R, N]
        sums = ((levels * scale[:, None] - x).square_() * row_weights[:, None]).sum(1)
        best = sums.min(0)
        costs.append((best.values * column_weights).sum(dtype=torch.float64))
        chosen.append(codes.gather(0, best.indices[None])[0].to(torch.uint8))
    return torch.stack(costs), torch.stack(chosen)


def descend_rows(residual: Tensor, dense: Tensor, scale: Tensor, h: Tensor, bits: int) -> Tensor:
    """One pass of coordinate descent over a group's rows: each moves to its best level, the others as they are.

    residual (used up) and dense (updated) [R, N], scale [N], h [R, R] -> q [R, N] uint8.
    """
    zero = 1 << (bits - 1)
    q = torch.empty_like(dense)
    curvature = h.diagonal().tolist()
    for c in range(len(dense)):
        q[c] = torch.div(dense[c] + residual[c] / curvature[c], scale).round_().add_(zero).clamp_(0, 2 * zero - 1)
        q[c].nan_to_num_(nan=2 * zero - 1)
        value = ((q[c] - zero) * scale).half().float()
        step = value - dense[c]
        dense[c] = value
        residual -= h[c][:, None] * step
    return q.to(torch.uint8)


def fit_and_round(
    w: Tensor, row_weights: Tensor, column_weights: Tensor, shares: Tensor, upper: Tensor, bits: int, window: int
) -> groups.Rounded:
    return groups.fit_and_round(scale_costs, round_rows, w, row_weights, column_weights, shares, upper, bits, window)


def descend_group(
    residual: Tensor, dense: Tensor, q: Tensor, codes: Tensor, scale_max: Tensor, h: Tensor, bits: int
) -> Tensor:
    return groups.descend_group(descend_rows, residual, dense, q, codes, scale_max, h, bits)
