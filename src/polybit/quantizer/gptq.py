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
from polybit.kernels.rounding import Rounding
from polybit.quantizer.hessian import Factor
from polybit.quantizer.scales import fit_scales, search_scales

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


# The scales of a group: its rows [R, N], their bits, and where the first of them stands among all -> codes, maximum.
FindScales = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def quantize(weight: Tensor, factor: Factor, layout: Layout, rounding: Rounding) -> Quantized:
    """As the original: weight [K, N] fp32, N a multiple of 32, rows in input-feature order."""
    return _quantize(weight, factor.perm, factor.upper, layout, rounding, _searching(rounding))


def quantize_fitted(
    weight: Tensor, factor: Factor, layout: Layout, column_weights: Tensor, rounding: Rounding
) -> Quantized:
    """The same with fitted scales. A row's error counts as feedback will see it, a column's by column_weights [N]."""
    row_weights = factor.row_weights

    def find(x: Tensor, bits: int, start: int) -> tuple[Tensor, Tensor]:
        fit = fit_scales(x[None], row_weights[None, start : start + len(x)], column_weights, bits, rounding)
        return fit.codes[0], fit.scale_max[0]

    return _quantize(weight, factor.perm, factor.upper, layout, rounding, find)


def round_to_nearest(weight: Tensor, perm: Tensor, layout: Layout, rounding: Rounding) -> Quantized:
    """The original's scales, order and layout without feedback: for a head too large to factorize (format 9.4)."""
    return _quantize(weight, perm, None, layout, rounding, _searching(rounding))


def _searching(rounding: Rounding) -> FindScales:
    return lambda x, bits, start: search_scales(x, bits, rounding)


def _quantize(
    weight: Tensor, perm: Tensor, upper: Tensor | None, layout: Layout, rounding: Rounding, find_scales: FindScales
) -> Quantized:
    w, start = weight[perm], 0
    groups = list[tuple[Tensor, Tensor, Tensor, Tensor]]()
    for group in layout.groups:
        stop = start + group.rows
        codes, scale_max = find_scales(w[start:stop], group.bits, start)
        scale = exl2.group_scales(codes, scale_max).float()
        block = torch.eye(group.rows, device=w.device) if upper is None else upper[start:stop, start:stop].contiguous()
        q, dense, errors = rounding.round_rows(w[start:stop].clone(), scale, block, group.bits)
        if upper is not None:
            w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
        groups.append((q, codes, scale_max, dense))
        start = stop
    all_q, all_codes, all_maxima, all_dense = zip(*groups, strict=True)
    w[perm] = torch.cat(all_dense)
    return Quantized(torch.cat(all_q), torch.stack(all_codes), torch.stack(all_maxima), layout, perm, dense=w)


def check_packing(packed: Exl2Tensor, dense: Tensor, where: str) -> None:
    """What a reader makes of the packed tensor must be the matrix that was meant, padded by zeros (format 9.5)."""
    found = exl2.dequantize(packed).float()
    worst = float((found - torch.nn.functional.pad(dense, (0, found.shape[1] - dense.shape[1]))).abs().max())
    if not worst <= MAX_PACKING_ERROR:
        raise FormatError(
            f"{where}: the packed matrix reads back with an error of {worst:.3g}, expected <= {MAX_PACKING_ERROR}; "
            "its weights may leave the range of fp16, check the source model"
        )
