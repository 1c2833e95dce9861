"""One block in memory with matrices whose weights can be swapped and whose inputs can be listened to."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from polybit import spec
from polybit.errors import FormatError
from polybit.format.checkpoint import Checkpoint
from polybit.format.dense import read_dense
from polybit.kernels.protocol import Backend
from polybit.modules.weights import GatedFn, JointFn, NormFn, after_gate, one_by_one

Listener = Callable[[Tensor], None]
GradientListener = Callable[[Tensor, Tensor], None]


class Probe:
    """y = (x W + bias) * prescale. `weight` may be replaced; `original` stays; `listener` is told each input.

    `gradient_listener` is told each input with the gradient at its output (before the prescale), in a backward pass.
    """

    def __init__(self, node: spec.Linear, original: Tensor, bias: Tensor | None) -> None:
        self.node = node
        self.original = original  # [K, N] fp32 of fp16 values
        self.bias = bias  # [N] fp32 of fp16 values
        self.weight = original
        self.listener: Listener | None = None
        self.gradient_listener: GradientListener | None = None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.listener is not None:
            self.listener(x)
        y = x @ self.weight
        if self.bias is not None:
            y += self.bias
        if self.gradient_listener is not None:
            y.register_hook(partial(self.gradient_listener, x.detach()))
        if self.node.prescale != 1.0:
            y = y * self.node.prescale
        return y if residual is None else residual + y


class ProbeWeights:
    """The `Weights` of a block as probes, rounded to fp16 as a conversion will store them, computing in fp32."""

    dtype = torch.float32

    def __init__(self, checkpoint: Checkpoint, device: torch.device, backend: Backend) -> None:
        self._checkpoint = checkpoint
        self._backend = backend
        self._device = device
        self.probes: dict[str, Probe] = {}

    def linear(self, node: spec.Linear) -> Probe:
        weight, bias = read_dense(self._checkpoint, node)
        original = in_half(weight.to(self._device), f"{node.key}.weight").float().T.contiguous()
        offset = None if bias is None else in_half(bias.to(self._device), f"{node.key}.bias").float()
        self.probes[node.key] = Probe(node, original, offset)
        return self.probes[node.key]

    def joint(self, nodes: Sequence[spec.Linear], norm: NormFn | None) -> JointFn:
        return one_by_one([self.linear(node) for node in nodes], norm, self.dtype)

    def gated(self, node: spec.Linear, activation: spec.Activation) -> GatedFn:
        return after_gate(self.linear(node), activation, self._backend)

    def vector(self, name: str) -> Tensor:
        return in_half(self._checkpoint.tensor(name), name).to(self._device).float()


def in_half(tensor: Tensor, name: str) -> Tensor:
    """As fp16. FormatError where a value is not finite, or too large for it."""
    if not tensor.isfinite().all():
        raise FormatError(f"{name} holds NaN or infinity; the model is damaged, fetch it again")
    half = tensor.half()
    if not half.isfinite().all():
        raise FormatError(
            f"{name} holds {float(tensor.abs().max()):.4g}, but EXL2 keeps numbers as fp16, which end at 65504; "
            "this model cannot be converted"
        )
    return half
