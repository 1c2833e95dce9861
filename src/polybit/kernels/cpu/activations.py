"""Gated activations. SiLU and the tanh form of GELU are both x times a logistic function."""

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_small
from polybit.kernels.cpu.exponential import exponentials
from polybit.kernels.cpu.inner import inner
from polybit.kernels.cpu.threads import cores
from polybit.spec import Activation

CUBIC = {Activation.SILU: 0.0, Activation.GELU_TANH: 0.044715}
LINEAR = {Activation.SILU: 1.0, Activation.GELU_TANH: 2 * math.sqrt(2 / math.pi)}


def gated_activate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    if activation not in LINEAR or gate.dtype != torch.float32 or up.dtype != torch.float32:
        return reference.gated_activate(gate, up, activation)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    linear, cubic = np.float32(LINEAR[activation]), np.float32(CUBIC[activation])
    gates, ups, found = (x.reshape(-1, gate.shape[-1]) for x in (array(gate), array(up), out.numpy()))
    if is_small(gate):
        _gate(gates, ups, linear, cubic, found)
    else:
        with cores():
            _gate_by_all(gates, ups, linear, cubic, found)
    return out


@njit(cache=True, error_model="numpy")
def _gate(gate: Floats, up: Floats, linear: np.float32, cubic: np.float32, out: Floats) -> None:
    for t in range(gate.shape[0]):
        _gate_row(gate[t], up[t], linear, cubic, out[t])


@njit(parallel=True, cache=True, error_model="numpy")
def _gate_by_all(gate: Floats, up: Floats, linear: np.float32, cubic: np.float32, out: Floats) -> None:
    for t in prange(gate.shape[0]):
        _gate_row(gate[t], up[t], linear, cubic, out[t])


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
