"""Gated activations. SiLU and the tanh form of GELU are both x times a logistic function."""

import math

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_small
from polybit.kernels.cpu.atomic import take_next
from polybit.kernels.cpu.exponential import exponentials
from polybit.kernels.cpu.inner import inner
from polybit.kernels.cpu.team import Board, team, together
from polybit.spec import Activation

CUBIC = {Activation.SILU: 0.0, Activation.GELU_TANH: 0.044715}
LINEAR = {Activation.SILU: 1.0, Activation.GELU_TANH: 2 * math.sqrt(2 / math.pi)}


def gated_activate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    if activation not in LINEAR or gate.dtype != torch.float32 or up.dtype != torch.float32:
        return reference.gated_activate(gate, up, activation)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    linear, cubic = np.float32(LINEAR[activation]), np.float32(CUBIC[activation])
    gates, ups, found = (x.reshape(-1, gate.shape[-1]) for x in (array(gate), array(up), out.numpy()))
    with team.turn:
        board, workers = team.call()
        _gate(gates, ups, linear, cubic, board, 1 if is_small(gate) else workers, found)
    return out


@njit(cache=True, error_model="numpy", nogil=True)
def _gate(
    gate: Floats, up: Floats, linear: np.float32, cubic: np.float32, board: Board, workers: int, out: Floats
) -> None:
    together(board, workers, _gate_rows, (np.zeros(1, np.int64), gate, up, linear, cubic, out))


@inner()
def _gate_rows(
    worker: int, taken: NDArray[np.int64], gate: Floats, up: Floats, linear: np.float32, cubic: np.float32, out: Floats
) -> None:
    t = take_next(taken, 0)
    while t < len(gate):
        _gate_row(gate[t], up[t], linear, cubic, out[t])
        t = take_next(taken, 0)


@inner()
def _gate_row(gate: Floats, up: Floats, linear: np.float32, cubic: np.float32, out: Floats) -> None:
    """gate * up / (1 + exp(-linear (gate + cubic gate^3)))"""
    for i in range(len(gate)):
        out[i] = max(-linear * (gate[i] + cubic * (gate[i] * gate[i] * gate[i])), np.float32(-87.0))
    for i in range(len(gate)):
        out[i] = min(out[i], np.float32(88.0))
    exponentials(out)
    for i in range(len(gate)):
        out[i] = gate[i] * up[i] / (np.float32(1) + out[i])
