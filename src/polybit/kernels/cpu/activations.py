"""Gated activations of few rows. SiLU and the tanh form of GELU are both x times a logistic function."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_small
from polybit.kernels.cpu.exponential import exponentials
from polybit.spec import Activation

CUBIC = {Activation.SILU: 0.0, Activation.GELU_TANH: 0.044715}
LINEAR = {Activation.SILU: 1.0, Activation.GELU_TANH: 2 * math.sqrt(2 / math.pi)}


def gated_activate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    if activation not in LINEAR or not is_small(gate) or up.dtype != torch.float32:
        return reference.gated_activate(gate, up, activation)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    linear, cubic = np.float32(LINEAR[activation]), np.float32(CUBIC[activation])
    _gate(array(gate).reshape(-1), array(up).reshape(-1), linear, cubic, out.numpy().reshape(-1))
    return out


@njit(cache=True, error_model="numpy")
def _gate(gate: Floats, up: Floats, linear: np.float32, cubic: np.float32, out: Floats) -> None:
    """gate * up / (1 + exp(-linear (gate + cubic gate^3)))"""
    for i in range(len(gate)):
        out[i] = max(-linear * (gate[i] + cubic * (gate[i] * gate[i] * gate[i])), np.float32(-87.0))
    for i in range(len(gate)):
        out[i] = min(out[i], np.float32(88.0))
    exponentials(out)
    for i in range(len(gate)):
        out[i] = gate[i] * up[i] / (np.float32(1) + out[i])
