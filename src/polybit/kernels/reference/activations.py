"""Element-wise non-linearities."""

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import assert_never

from polybit.spec import Activation


def activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case Activation.SILU:
            return F.silu(x.float()).to(x.dtype)
        case Activation.GELU:
            return F.gelu(x.float()).to(x.dtype)
        case Activation.GELU_TANH:
            return F.gelu(x.float(), approximate="tanh").to(x.dtype)
        case Activation.RELU:
            return torch.relu(x)
    assert_never(activation)


def gated_activate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return (activate(gate.float(), activation) * up.float()).to(gate.dtype)
