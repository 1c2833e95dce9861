"""Rounds one matrix group by group, each error fed back to the rows still to come (format 9.4).

Pure: weights, a factor and a layout in, integers and scales out. Nothing here knows of files or models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.errors import FormatError
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor, Layout
from polybit.kernels.reference.groups import Rounded
from polybit.kernels.rounding import Rounding
from polybit.quantizer.hessian import Factor
from polybit.quantizer.runs import runs
from polybit.quantizer.scales import NUM_MAXIMA, WINDOWS, search_scales, shares

MAX_PACKING_ERROR = 0.05


@dataclass(frozen=True)
class Quantized:
    """One matrix as integers and scales, its rows sorted by `perm`."""

    q: Tensor  # [K, N] uint8
    codes: Tensor  # [G, N] uint8
    scale_max: Tensor  # [G] fp16
    layout: Layout
    perm: Tensor  # [K] int64: input feature of each sorted row
    dense: Tensor  # [K, N] fp32 of fp16 values, rows in input-feature order: what a reader will compute

    def encode(self, bias: Tensor | None = None) -> Exl2Tensor:
        """As stored; bias [N] fp16."""
        return exl2.encode(self.q, self.codes, self.scale_max, self.layout, self.perm, bias)


# A group's rows [R, N], their part of the factor [R, R], their bits, and where the first of them stands among all.
RoundGroup = Callable[[Tensor, Tensor, int, int], Rounded]


def quantize(weight: Tensor, factor: Factor, layout: Layout, rounding: Rounding) -> Quantized:
    """As the original: weight [K, N] fp32, N a multiple of 32, rows in input-feature order."""
    return _quantize(weight, factor.perm, factor.upper, layout, _searching(rounding), rounding.UPDATE_ROWS)


def quantize_fitted(
    weight: Tensor, factor: Factor, layout: Layout, column_weights: Tensor, rounding: Rounding
) -> Quantized:
    """The same with fitted scales. A row's error counts as feedback will see it, a column's by column_weights [N]."""
    row_weights = factor.row_weights

    def round_group(w: Tensor, upper: Tensor, bits: int, start: int) -> Rounded:
        tried, weights = shares(bits, NUM_MAXIMA, w.device), row_weights[start : start + len(w)]
        return rounding.fit_and_round(w, weights, column_weights, tried, upper, bits, WINDOWS[bits])

    return _quantize(weight, factor.perm, factor.upper, layout, round_group, rounding.UPDATE_ROWS)


def round_to_nearest(weight: Tensor, perm: Tensor, layout: Layout, rounding: Rounding) -> Quantized:
    """The original's scales, order and layout without feedback: for a head too large to factorize (format 9.4)."""
    return _quantize(weight, perm, None, layout, _searching(rounding), rounding.UPDATE_ROWS)


def _searching(rounding: Rounding) -> RoundGroup:
    def round_group(w: Tensor, upper: Tensor, bits: int, start: int) -> Rounded:
        codes, scale_max = search_scales(w, bits, rounding)
        scale = exl2.group_scales(codes, scale_max).float()
        q, dense, errors = rounding.round_rows(w.clone(), scale, upper.contiguous(), bits)
        return Rounded(q, codes, scale_max, dense, errors)

    return round_group


def _quantize(
    weight: Tensor, perm: Tensor, upper: Tensor | None, layout: Layout, round_group: RoundGroup, update_rows: int
) -> Quantized:
    w, found = weight[perm], list[list[Tensor]]()
    for run in runs(layout, update_rows):
        stop, errors = run[-1].stop, list[Tensor]()
        for group in run:
            rows = group.rows
            square = torch.eye(group.stop - group.start, device=w.device) if upper is None else upper[rows, rows]
            *rounded, error = round_group(w[rows], square, group.bits, group.start)
            found.append(rounded)
            errors.append(error)
            if upper is not None:
                w[group.stop : stop].addmm_(upper[rows, group.stop : stop].T, error, alpha=-1)
        if upper is not None:
            w[stop:].addmm_(upper[run[0].start : stop, stop:].T, torch.cat(errors), alpha=-1)
    q, codes, maxima, dense = zip(*found, strict=True)
    w[perm] = torch.cat(dense)
    return Quantized(torch.cat(q), torch.stack(codes), torch.stack(maxima), layout, perm, dense=w)


def check_packing(packed: Exl2Tensor, dense: Tensor, where: str) -> None:
    """What a reader makes of the packed tensor must be the matrix that was meant, padded by zeros (format 9.5)."""
    found = exl2.dequantize(packed).float()
    worst = float((found - torch.nn.functional.pad(dense, (0, found.shape[1] - dense.shape[1]))).abs().max())
    if not worst <= MAX_PACKING_ERROR:
        raise FormatError(
            f"{where}: the packed matrix reads back with an error of {worst:.3g}, expected <= {MAX_PACKING_ERROR}; "
            "its weights may leave the range of fp16, check the source model"
        )
