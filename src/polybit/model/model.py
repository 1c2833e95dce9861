"""A loaded model: tokens in, logits out. It keeps no sequence; positions and the K/V store are arguments."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit import spec
from polybit.format import gptq
from polybit.kernels.protocol import Backend
from polybit.kernels.registry import get_backend
from polybit.model.device import choose_device, choose_dtype, made_current
from polybit.model.plan import check_fits, plan_memory
from polybit.model.source import ModelSource, head_is_tied
from polybit.model.weights import FolderWeights
from polybit.modules.block import Layer, build_block
from polybit.modules.norm import NormFn, build_norm
from polybit.modules.rope import RopeTables
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import LinearFn

log = logging.getLogger(__name__)

LoadProgress = Callable[[int, int], None]  # parts done, parts in all


@dataclass(frozen=True)
class Model:
    spec: spec.Model
    device: torch.device
    dtype: torch.dtype  # of activations
    backend: Backend
    embedding: Tensor  # [V, E]
    positions: Tensor | None  # [max positions, E]
    ropes: RopeTables
    layers: tuple[Layer, ...]
    norm: NormFn
    head: LinearFn

    @property
    def max_seq_len(self) -> int:
        return self.spec.max_seq_len

    @torch.inference_mode()
    def forward(self, tokens: Tensor, step: Step, store: KVStore, logits_at: Tensor | None = None) -> Tensor:
        """tokens [T] int64 -> logits [n, V] fp32 of the tokens at `logits_at` [n] (indices into T; None: all)."""
        with made_current(self.device):
            x = self.embed(tokens, step)
            for layer in self.layers:
                x = layer(x, step, store)
            return self.logits(x if logits_at is None else x[logits_at])

    def embed(self, tokens: Tensor, step: Step) -> Tensor:
        """The residual stream's start, [T, E]; fp32 where the model needs that range."""
        x = self.backend.embedding(tokens, self.embedding, self.spec.embedding.scale)
        if self.positions is not None:
            x = x + self.positions[step.positions].float()
        return x if self.spec.fp32_residual else x.to(self.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and head: [n, E] -> [n, V] fp32."""
        logits = self.head(self.norm(x).to(self.dtype)).float()
        softcap = self.spec.head.softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@torch.inference_mode()
def load(source: ModelSource, progress: LoadProgress | None = None) -> Model:
    """Load every part of an opened folder. Raises OutOfMemory before it starts if the plan does not fit."""
    model, options = source.spec, source.options
    device = choose_device(options.device)
    dtype, backend = choose_dtype(options.dtype, device), get_backend(options.backend, device)
    unpacked, zero_offset = _choose_unpacked(source, device, dtype, backend), gptq.zero_offset(source.config)
    weights = FolderWeights(source.checkpoint, backend, device, dtype, unpacked, zero_offset)
    tell = progress or (lambda done, total: None)
    total = len(model.blocks) + 2
    embedding = weights.embedding(model.embedding)
    positions = None if model.positions is None else weights.embedding(model.positions)
    tell(1, total)
    ropes = RopeTables(model.max_seq_len, device)
    layers = []
    with made_current(device):
        for i, block in enumerate(model.blocks):
            layers.append(build_block(block, i, weights, backend, ropes))
            tell(i + 2, total)
        head = weights.head(model.head, embedding if head_is_tied(model, source.checkpoint) else None)
        tell(total, total)
    norm = build_norm(model.norm, weights, backend)
    return Model(model, device, dtype, backend, embedding, positions, ropes, tuple(layers), norm, head)


def _choose_unpacked(source: ModelSource, device: torch.device, dtype: torch.dtype, backend: Backend) -> bool:
    plan = plan_memory(source, device, dtype)
    wanted = source.options.unpacked
    unpacked = plan.should_unpack(backend) if wanted is None else wanted
    check_fits(plan, unpacked, device, str(source.folder))
    held = "are held dequantized" if unpacked else "are held packed"
    log.info(
        "weights %s (%.2f GB; %.2f GB free)",
        held if plan.is_quantized else "are not quantized",
        plan.weights(unpacked) / 1e9,
        plan.free / 1e9,
    )
    return unpacked
