"""After rounding: sweeps of coordinate descent that lower the same quadratic cost further, scales and levels by turns.

The cost of a matrix W is the sum over columns of (w - d)^T H (w - d). Each step takes one coordinate to its best value
with all others as they are, so the cost does not rise (but by the fp16 rounding of a weight).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from polybit.kernels.rounding import Rounding
from polybit.quantizer.gptq import Quantized
from polybit.quantizer.runs import GroupRows, runs

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
        for run in runs(quantized.layout, rounding.UPDATE_ROWS):
            rows = slice(run[0].start, run[-1].stop)
            moved = _descend_run(run, residual[rows].clone(), dense, q, codes, quantized.scale_max, h, rounding)
            residual.addmm_(h[rows].T, moved, alpha=-1)
    out = torch.empty_like(dense)
    out[quantized.perm] = dense
    return q, codes, out


def _descend_run(
    run: Sequence[GroupRows],
    residual: Tensor,
    dense: Tensor,
    q: Tensor,
    codes: Tensor,
    scale_max: Tensor,
    h: Tensor,
    rounding: Rounding,
) -> Tensor:
    """residual: of the run's rows, used up -> by how much these rows of dense moved. Updates dense, q and codes."""
    first, stop, moved = run[0].start, run[-1].stop, list[Tensor]()
    for group in run:
        rows, inner = group.rows, slice(group.start - first, group.stop - first)
        state = (dense[rows], q[rows], codes[group.index], scale_max[group.index])
        moved.append(rounding.descend_group(residual[inner], *state, h[rows, rows], group.bits))
        residual[inner.stop :].addmm_(h[rows, group.stop : stop].T, moved[-1], alpha=-1)
    return torch.cat(moved)
