"""A loaded model: tokens in, logits out. It keeps no sequence; positions and the K/V store are arguments."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit import spec
from polybit.kernels.pages import KVBits
from polybit.kernels.protocol import Backend
from polybit.model.device import current
from polybit.modules.rope import RopeTables
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import LinearFn, NormFn

LayerFn = Callable[[Tensor, Step, KVStore], Tensor]


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks on one device."""

    device: torch.device
    ropes: RopeTables
    layers: tuple[LayerFn, ...]

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        x, step = x.to(self.device), step.to(self.device)
        with current(self.device):
            for layer in self.layers:
                x = layer(x, step, store)
        return x


@dataclass(frozen=True)
class Model:
    spec: spec.Model
    dtype: torch.dtype  # of activations
    backend: Backend
    cache: KVBits  # of keys and values that a pool is to hold
    embedding: Tensor  # [V, E]
    positions: Tensor | None  # [max positions, E]
    stages: tuple[Stage, ...]  # in order, one for each device
    norm: NormFn
    head: LinearFn

    @property
    def device(self) -> torch.device:
        """Of everything that goes in and comes out."""
        return self.stages[0].device

    @property
    def block_devices(self) -> tuple[torch.device, ...]:
        """The device of each block, where its keys and values belong."""
        return tuple(stage.device for stage in self.stages for _ in stage.layers)

    @property
    def max_seq_len(self) -> int:
        return self.spec.max_seq_len

    @torch.inference_mode()
    def forward(self, tokens: Tensor, step: Step, store: KVStore, logits_at: Tensor | None = None) -> Tensor:
        """tokens [T] int64 -> logits [n, V] fp32 of the tokens at `logits_at` [n] (indices into T; None: all)."""
        x = self.embed(tokens, step)
        for stage in self.stages:
            x = stage(x, step, store)
        return self.logits(x if logits_at is None else x[logits_at.to(x.device)])

    def embed(self, tokens: Tensor, step: Step) -> Tensor:
        """The residual stream's start, [T, E]; fp32 where the model needs that range."""
        x = self.backend.embedding(tokens, self.embedding, self.spec.embedding.scale)
        if self.positions is not None:
            x = x + self.positions[step.positions].float()
        return x if self.spec.fp32_residual else x.to(self.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and head: [n, E] -> [n, V] fp32."""
        with current(x.device):
            logits = self.head(self.norm(x).to(self.dtype)).float()
        softcap = self.spec.head.softcap
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).to(self.device)
