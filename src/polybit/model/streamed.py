"""A model of which one block at a time is in memory: for a pass over many tokens with one that need not fit whole.

Its blocks are what `load` would make of the same folder on the same device.
"""

from dataclasses import dataclass, field

import torch

from polybit.kernels.pages import FULL
from polybit.kernels.registry import get_backend
from polybit.model.device import choose_dtype, current
from polybit.model.model import LayerFn, Model, Stage
from polybit.model.source import ModelSource, head_is_tied
from polybit.model.weights import FolderWeights, Linear
from polybit.modules.block import build_block
from polybit.modules.norm import build_norm
from polybit.modules.rope import RopeTables
from polybit.spec import Linear as LinearNode


@dataclass(frozen=True)
class NotedWeights(FolderWeights):
    """Keeps what it hands out in `noted`, by key, so that a matrix can also be called by itself."""

    noted: dict[str, Linear] = field(default_factory=dict)

    def linear(self, node: LinearNode) -> Linear:
        self.noted[node.key] = super().linear(node)
        return self.noted[node.key]


@dataclass(frozen=True)
class StreamedModel:
    source: ModelSource
    weights: FolderWeights
    ropes: RopeTables

    @classmethod
    def of(cls, source: ModelSource, device: torch.device) -> "StreamedModel":
        """Raises ConfigError or KernelError as `load` does."""
        dtype, backend = choose_dtype(source.options.dtype, device), get_backend(source.options.backend, device)
        weights = FolderWeights(source.checkpoint, backend, device, dtype, unpacked=not backend.READS_PACKED)
        return cls(source, weights, RopeTables(source.spec.max_seq_len, device))

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return self.weights.dtype

    def shell(self) -> Model:
        """The model without blocks: `embed` what goes into the first, and the `logits` of what the last gives."""
        model, weights = self.source.spec, self.weights
        with current(weights.device):
            table = weights.embedding(model.embedding)
            positions = None if model.positions is None else weights.embedding(model.positions)
            norm = build_norm(model.norm, weights, weights.backend)
            head = weights.head(model.head, table if head_is_tied(model, self.source.checkpoint) else None)
        stage = Stage(weights.device, self.ropes, ())
        return Model(model, weights.dtype, weights.backend, FULL, table, positions, (stage,), norm, head)

    def block(self, index: int) -> tuple[LayerFn, dict[str, Linear]]:
        """Read a block; with it, each of its matrices by key."""
        weights = self.weights
        noted = NotedWeights(weights.checkpoint, weights.backend, weights.device, weights.dtype, weights.unpacked)
        with current(weights.device):
            layer = build_block(self.source.spec.blocks[index], 0, noted, weights.backend, self.ropes)
        return layer, noted.noted
