"""Element-wise non-linearities, alone or as a gate, in fp32 and rounded once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polybit.spec import Activation

BLOCK = 1024
SILU, GELU, GELU_TANH = (tl.constexpr(each.value) for each in (Activation.SILU, Activation.GELU, Activation.GELU_TANH))
RELU = tl.constexpr(Activation.RELU.value)


@triton.jit
def _act(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == SILU:
        y = x * tl.sigmoid(x)
    elif ACTIVATION == GELU:
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))  # 1 / sqrt(2)
    elif ACTIVATION == GELU_TANH:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
        y = x * tl.sigmoid(2 * inner)  # (1 + tanh(u)) / 2 = sigmoid(2 u)
    else:
        tl.static_assert(ACTIVATION == RELU)
        y = tl.where(x < 0, 0.0, x)
    return y


@triton.jit
def _activate(x, up, out, num_elements, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_elements
    value = _act(tl.load(x + at, inside, other=0.0).to(tl.float32), ACTIVATION)
    if up is not None:
        value *= tl.load(up + at, inside, other=0.0).to(tl.float32)
    tl.store(out + at, value, inside)


def activate(x: Tensor, activation: Activation) -> Tensor:
    return _launch(x.contiguous(), None, activation)


def gated_activate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return _launch(gate.contiguous(), up.contiguous(), activation)


def _launch(x: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
    out = torch.empty_like(x)
    num_elements = x.numel()
    _activate[(triton.cdiv(num_elements, BLOCK),)](x, up, out, num_elements, activation.value, BLOCK)
    return out
