"""After rounding: sweeps of coordinate descent that lower the same quadratic cost further, scales and levels by turns.

The cost of a matrix W is the sum over columns of (w - d)^T H (w - d). Each step takes one coordinate to its best value
with all others as they are, so the cost does not rise (but by the fp16 rounding of a weight).
"""

from dataclasses import replace

import torch
from torch import Tensor

from polybit.kernels.rounding import Rounding
from polybit.quantizer.gptq import Quantized
from polybit.quantizer.scales import realised_scales

COLUMNS_AT_ONCE = 1 << 14  # columns do not touch each other; a head has very many
MIN_CURVATURE = 1e-6  # of the diagonal's mean: an input that is always zero would divide by it


def descend(quantized: Quantized, weight: Tensor, h: Tensor, sweeps: int, rounding: Rounding) -> Quantized:
    """weight [K, N] fp32 that `quantized` was made of, h [K, K] without damping; both in input-feature order."""
    perm = quantized.perm
    h = h[perm][:, perm]
    h.diagonal().clamp_(min=MIN_CURVATURE * float(h.diagonal().mean()))
    q, codes, dense = quantized.q.clone(), quantized.codes.clone(), quantized.dense.clone()
    for start in range(0, dense.shape[1], COLUMNS_AT_ONCE):
        part = slice(start, start + COLUMNS_AT_ONCE)
        columns = replace(quantized, q=q[:, part], codes=codes[:, part], dense=dense[:, part])
        q[:, part], codes[:, part], dense[:, part] = _descend_columns(columns, weight[:, part], h, sweeps, rounding)
    return replace(quantized, q=q, codes=codes, dense=dense)


def _descend_columns(
    quantized: Quantized, weight: Tensor, h: Tensor, sweeps: int, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """h [K, K] sorted; all else as descend -> q, codes and dense."""
    q, codes, dense = quantized.q.clone(), quantized.codes.clone(), quantized.dense[quantized.perm]
    residual = h @ (weight[quantized.perm] - dense)  # [K, N]: half the cost's gradient, downhill
    for _ in range(sweeps):
        start = 0
        for g, group in enumerate(quantized.layout.groups):
            rows = slice(start, start + group.rows)
            block = h[rows, rows].contiguous()
            found = _descend_group(
                residual[rows], dense[rows], q[rows], codes[g], quantized.scale_max[g], group.bits, block, rounding
            )
            residual.addmm_(h[rows].T, found[0] - dense[rows], alpha=-1)
            dense[rows], q[rows], codes[g] = found
            start += group.rows
    out = torch.empty_like(dense)
    out[quantized.perm] = dense
    return q, codes, out


def _descend_group(
    residual: Tensor,
    dense: Tensor,
    q: Tensor,
    codes: Tensor,
    scale_max: Tensor,
    bits: int,
    h: Tensor,
    rounding: Rounding,
) -> tuple[Tensor, Tensor, Tensor]:
    """Better codes for the levels as they are, then better levels: new dense [R, N], q [R, N] and codes [N]."""
    levels = q.float() - (1 << (bits - 1))
    table = realised_scales(scale_max)
    slope, curvature = (levels * residual).sum(0), (levels * (h @ levels)).sum(0)
    codes = _nearest(table, table[codes.long()] + torch.where(curvature > 0, slope / curvature, 0.0))
    scale = table[codes]
    moved = (levels * scale).half().float()
    residual = residual - h @ (moved - dense)
    better = rounding.descend_rows(residual, moved, scale, h, bits)
    return moved, better, codes.to(torch.uint8)


def _nearest(table: Tensor, wanted: Tensor) -> Tensor:
    """Indices [N] into table [16], which rises."""
    above = torch.searchsorted(table, wanted).clamp_(1, 15)
    return above - (wanted - table[above - 1] <= table[above] - wanted).long()
