"""Blocks whose matrices live in RAM: two places on the device take them in turn, one on its way while the other works.

A block's matrices are prepared on the device like any other's, then moved as one run of bytes into pinned RAM. Its
callables are built over views of a place on the device, so that running it needs one copy and nothing else.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit import spec
from polybit.errors import KernelError
from polybit.model.pinned import pinned_bytes
from polybit.model.plan import OFFLOAD_SLOTS
from polybit.model.tensor_tree import gather, num_bytes, over
from polybit.model.weights import GatedLinear, Linear
from polybit.modules.block import Layer
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import GatedFn, JointFn, NormFn, Weights, one_by_one


@dataclass(frozen=True)
class Parcel:
    """The matrices of one block: where their tensors lie in `bytes`, which are in pinned RAM."""

    linears: Mapping[str, Linear]  # whose tensors are gone: only shapes and types count
    bytes: Tensor  # [n] uint8

    def over(self, place: Tensor) -> Mapping[str, Linear]:
        """The same matrices over the memory of `place` [>= n] uint8."""
        return dict(zip(self.linears, over(tuple(self.linears.values()), place), strict=True))


def pack(linears: Mapping[str, Linear]) -> Parcel:
    """Move prepared matrices into pinned RAM. KernelError: the backend keeps some of their memory out of sight."""
    matrices = tuple(linears.values())
    held, seen = sum(linear.matrix.num_bytes for linear in matrices), num_bytes(matrices)
    if seen < held:
        raise KernelError(f"matrices of this backend cannot live in RAM: {held} bytes are held, but {seen} are seen")
    hollow, data = gather(matrices, pinned_bytes)
    return Parcel(dict(zip(linears, hollow, strict=True)), data)


class Ferry:
    """Brings blocks from RAM to the device: block i of the ferry into place i modulo OFFLOAD_SLOTS."""

    def __init__(self, device: torch.device, parcels: Sequence[Parcel]) -> None:
        self._parcels = [parcel.bytes for parcel in parcels]
        size = max(len(data) for data in self._parcels)
        self.places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(OFFLOAD_SLOTS)]
        self._holds: list[int | None] = [None] * OFFLOAD_SLOTS
        self._device = device
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._arrived = [torch.cuda.Event() for _ in self.places]
            self._left = [torch.cuda.Event() for _ in self.places]

    def place_of(self, index: int) -> Tensor:
        return self.places[index % OFFLOAD_SLOTS]

    def await_block(self, index: int) -> None:
        """What is queued on the device from here on finds the block's matrices in their place."""
        slot = index % OFFLOAD_SLOTS
        if self._holds[slot] != index:  # the first pass, or one after a pass that was cut short
            self._bring(index)
        if self._on_gpu:
            torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])

    def release(self, index: int) -> None:
        """The block has been queued; its place is for the next that shares it, the first of them after the last."""
        slot = index % OFFLOAD_SLOTS
        following = index + OFFLOAD_SLOTS
        following = following if following < len(self._parcels) else slot
        if following != index:
            self._bring(following)

    def _bring(self, index: int) -> None:
        slot = index % OFFLOAD_SLOTS
        data = self._parcels[index]
        self._holds[slot] = index
        if not self._on_gpu:
            self.places[slot][: len(data)].copy_(data)
            return
        self._left[slot].record(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._left[slot])
            self.places[slot][: len(data)].copy_(data, non_blocking=True)
            self._arrived[slot].record(self._stream)

    def seconds(self) -> float:
        """What bringing all blocks once takes; measured on the first."""
        started = time.perf_counter()
        self._bring(0)
        if self._on_gpu:
            self._stream.synchronize()
        rate = len(self._parcels[0]) / (time.perf_counter() - started)
        return sum(map(len, self._parcels)) / rate


@dataclass(frozen=True)
class FerriedLayer:
    """A block whose matrices are brought before it runs."""

    layer: Layer
    index: int  # on the ferry
    ferry: Ferry

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        self.ferry.await_block(self.index)
        y = self.layer(x, step, store)
        self.ferry.release(self.index)
        return y


@dataclass(frozen=True)
class FerriedWeights:
    """Weights of one block that lives in RAM: its matrices over a place on the device, its vectors as usual."""

    linears: Mapping[str, Linear]
    others: Weights

    @property
    def dtype(self) -> torch.dtype:
        return self.others.dtype

    def linear(self, node: spec.Linear) -> Linear:
        return self.linears[node.key]

    def joint(self, nodes: Sequence[spec.Linear], norm: NormFn | None) -> JointFn:
        return one_by_one([self.linear(node) for node in nodes], norm, self.dtype)

    def gated(self, node: spec.Linear, activation: spec.Activation) -> GatedFn:
        return GatedLinear(self.linear(node), activation)

    def vector(self, name: str) -> Tensor:
        return self.others.vector(name)
