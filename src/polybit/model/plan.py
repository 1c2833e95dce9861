"""What a model needs in memory, worked out from names and shapes before anything is loaded."""

from dataclasses import dataclass

import psutil
import torch

from polybit import spec
from polybit.errors import OutOfMemory
from polybit.kernels.protocol import Backend
from polybit.model.source import ModelSource, vector_names

UNPACK_SHARE = 0.5  # quantized weights are held dequantized where they take at most this share of the free memory


@dataclass(frozen=True)
class MemoryPlan:
    """All in bytes, for activations and caches of `dtype`."""

    packed: int  # matrices as stored
    unpacked: int  # matrices dequantized to dtype
    vectors: int  # embeddings, norms, routers
    kv_per_token: int  # keys and values of one token, all layers
    free: int  # on the device now

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix could be held packed."""
        return self.packed != self.unpacked

    def weights(self, unpacked: bool) -> int:
        return (self.unpacked if unpacked else self.packed) + self.vectors

    def should_unpack(self, backend: Backend) -> bool:
        return not backend.READS_PACKED and self.weights(unpacked=True) <= UNPACK_SHARE * self.free

    def max_context(self, unpacked: bool) -> int:
        """Tokens of K/V cache that fit beside the weights."""
        return max(0, (self.free - self.weights(unpacked)) // self.kv_per_token)


def plan_memory(source: ModelSource, device: torch.device, dtype: torch.dtype) -> MemoryPlan:
    model, checkpoint = source.spec, source.checkpoint

    def dense(linear: spec.Linear) -> int:
        return linear.in_features * linear.padded_out_features * dtype.itemsize

    def packed(linear: spec.Linear) -> int:
        is_quantized = checkpoint.kind(linear.key) in ("exl2", "gptq")
        return sum(map(checkpoint.num_bytes, checkpoint.names_of(linear.key))) if is_quantized else dense(linear)

    linears = (*model.linears, model.head.linear)
    return MemoryPlan(
        packed=sum(map(packed, linears)),
        unpacked=sum(map(dense, linears)),
        vectors=sum(checkpoint.num_bytes(name) for name in vector_names(model)),
        kv_per_token=kv_bytes_per_token(model, dtype),
        free=free_bytes(device),
    )


def kv_bytes_per_token(model: spec.Model, dtype: torch.dtype) -> int:
    return sum(2 * block.attn.num_kv_heads * block.attn.head_dim for block in model.blocks) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated now: of the card for CUDA, of the machine for the CPU and Apple GPUs."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_fits(plan: MemoryPlan, unpacked: bool, device: torch.device, folder: str) -> None:
    needed = plan.weights(unpacked)
    if needed > plan.free:
        raise OutOfMemory(
            f"{folder} needs {needed / 1e9:.1f} GB of memory on {device}, but {plan.free / 1e9:.1f} GB are free; "
            + ("use unpacked=False, " if unpacked and plan.is_quantized else "")
            + "close other programs or take a model of fewer bits per weight"
        )
