"""What quantization does to one group of rows, put together from the loops of a `Rounding`; all but its scales' search.

Where launches are dear, a backend does each of these in few kernels of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from polybit.format import exl2

ScaleCosts = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]
RoundRows = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
DescendRows = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Rounded(NamedTuple):
    """One group."""

    q: Tensor  # [R, N] uint8
    codes: Tensor  # [N] uint8
    scale_max: Tensor  # scalar in fp16
    dense: Tensor  # [R, N] of fp16 values
    errors: Tensor  # [R, N] as feedback wants them: over the diagonal of the factor


def realised_scales(maxima: Tensor) -> Tensor:
    """maxima [...] fp16 -> [..., 16] fp32: the scale of every code, in rising order."""
    every = torch.arange(16, dtype=torch.uint8, device=maxima.device)
    return exl2.group_scales(every.expand(*maxima.shape, 16), maxima).float()


def fit(
    scale_costs: ScaleCosts,
    x: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    shares: Tensor,
    bits: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [G, R, N], row_weights [G, R], column_weights [N], shares [C] of the maximum that clips nothing.

    The cheapest maximum of each group and its columns' codes: codes [G, N], maxima [G] fp16, costs [G] fp64.
    """
    top = x.abs().amax((1, 2)) / ((1 << (bits - 1)) - 0.5)
    maxima = (shares * top[:, None]).half()
    costs, codes = scale_costs(x, row_weights, column_weights, realised_scales(maxima), bits, window)
    best = costs.argmin(1, keepdim=True)
    chosen = codes.gather(1, best[..., None].expand(-1, -1, codes.shape[2]))
    return chosen[:, 0], maxima.gather(1, best)[:, 0], costs.gather(1, best)[:, 0]


def fit_and_round(
    scale_costs: ScaleCosts,
    round_rows: RoundRows,
    w: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    shares: Tensor,
    upper: Tensor,
    bits: int,
    window: int,
) -> Rounded:
    """Rounding.fit_and_round"""
    codes, maxima, _ = fit(scale_costs, w[None], row_weights[None], column_weights, shares, bits, window)
    scale = exl2.group_scales(codes[0], maxima[0]).float()
    q, dense, errors = round_rows(w.clone(), scale, upper.contiguous(), bits)
    return Rounded(q, codes[0], maxima[0], dense, errors)


def descend_group(
    descend_rows: DescendRows,
    residual: Tensor,
    dense: Tensor,
    q: Tensor,
    codes: Tensor,
    scale_max: Tensor,
    h: Tensor,
    bits: int,
) -> Tensor:
    """Rounding.descend_group"""
    h, levels, table = h.contiguous(), q.float() - (1 << (bits - 1)), realised_scales(scale_max)
    slope, curvature = (levels * residual).sum(0), (levels * (h @ levels)).sum(0)
    better = _nearest(table, table[codes.long()] + torch.where(curvature > 0, slope / curvature, 0.0))
    scale = table[better]
    found = (levels * scale).half().float()
    residual = residual - h @ (found - dense)
    q.copy_(descend_rows(residual, found, scale, h, bits))
    codes.copy_(better)
    moved = found - dense
    dense.copy_(found)
    return moved


def _nearest(table: Tensor, wanted: Tensor) -> Tensor:
    """Indices [N] into table [16], which rises."""
    above = torch.searchsorted(table, wanted).clamp_(1, 15)
    return above - (wanted - table[above - 1] <= table[above] - wanted).long()
