"""An opened folder to a model: planned, then built part by part, the next part being read while one is prepared.

The builder itself takes weights from anywhere.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor

from polybit import spec
from polybit.format import gptq
from polybit.format.checkpoint import Checkpoint
from polybit.format.read_ahead import Part, read_ahead, read_into
from polybit.model.device import current
from polybit.model.footprint import linears_of
from polybit.model.model import LayerFn, Model, Stage
from polybit.model.offload import FerriedLayer, FerriedWeights, Ferry, Parcel, pack
from polybit.model.pinned import seen_by
from polybit.model.plan import Machine, Plan
from polybit.model.setup import Setup, set_up, tell
from polybit.model.source import ModelSource, head_is_tied
from polybit.model.tensor_tree import gather, over
from polybit.model.weights import FolderWeights, ModelWeights
from polybit.modules.block import build_block
from polybit.modules.norm import build_norm
from polybit.modules.rope import RopeTables

log = logging.getLogger(__name__)

LoadProgress = Callable[[int, int], None]  # parts done, parts in all


def load(
    source: ModelSource,
    progress: LoadProgress | None = None,
    cache_tokens: int = 0,
    machine: Machine | None = None,
) -> Model:
    """Load every part of an opened folder, beside which a K/V pool of `cache_tokens` is to fit.

    `machine`: what may be used; None: what the options say.

    Raises ConfigError, KernelError, FormatError, or OutOfMemory before it starts if there is no plan.
    """
    setup = set_up(source, cache_tokens, machine)
    tell(setup, source)
    return build(source, setup, progress)


def build(source: ModelSource, setup: Setup, progress: LoadProgress | None = None) -> Model:
    """The model that `setup` describes."""
    return build_from(source.spec, FolderSupply(source, setup), setup, progress)


class Supply(Protocol):
    """Gives a builder the weights of each part, whatever they come from. Parts come in order: blocks, then the head."""

    def table(self) -> Tensor:
        """The token embedding [V, E]; asked for before any part."""

    def tied_to(self, table: Tensor) -> Tensor | None:
        """The embedding, if it is the head as well."""

    def part(self, device: torch.device) -> ModelWeights:
        """The next part's weights, for `device`."""

    def lasting(self, device: torch.device) -> ModelWeights:
        """Weights for `device` that hold on to nothing that was made ready for a part."""


@torch.inference_mode()
def build_from(model: spec.Model, supply: Supply, setup: Setup, progress: LoadProgress | None = None) -> Model:
    """The model that `setup` describes, of any weights."""
    return _Builder(model, supply, setup, progress or (lambda done, total: None)).build()


class FolderSupply:
    """A folder's weights; those for a GPU are read ahead."""

    def __init__(self, source: ModelSource, setup: Setup) -> None:
        self._source, self._plan = source, setup.plan
        zero_offset = gptq.zero_offset(source.config)
        self._weights = FolderWeights(
            source.checkpoint, setup.backend, setup.plan.device, setup.dtype, setup.unpacked, zero_offset
        )
        self._parts = _checkpoints(source, setup.plan)

    def table(self) -> Tensor:
        """As stored: half the memory of fp32, and only rows in use are ever converted."""
        name, device, checkpoint = _table_name(self._source), self._plan.device, next(self._parts)
        if not self._plan.table_stays:
            return checkpoint.tensor(name).to(device)
        with current(device):
            pinned = torch.empty(checkpoint.shape(name), dtype=checkpoint.dtype(name), pin_memory=True)
        read_into(pinned, checkpoint, name)
        return seen_by(device, pinned)

    def tied_to(self, table: Tensor) -> Tensor | None:
        """Never as a GPU sees it in RAM, which is slow to multiply with."""
        if not head_is_tied(self._source.spec, self._source.checkpoint):
            return None
        return self._source.checkpoint.tensor(_table_name(self._source)) if self._plan.table_stays else table

    def part(self, device: torch.device) -> FolderWeights:
        return replace(self._weights, device=device, checkpoint=next(self._parts))

    def lasting(self, device: torch.device) -> FolderWeights:
        return replace(self._weights, device=device)


class _Builder:
    def __init__(self, model: spec.Model, supply: Supply, setup: Setup, progress: LoadProgress) -> None:
        self._spec, self._supply, self._plan = model, supply, setup.plan
        self._backend, self._cache = setup.backend, setup.cache
        self._progress, self._done = progress, 0
        self._ropes = cache(lambda device: RopeTables(self._spec.max_seq_len, device))

    def build(self) -> Model:
        model, first = self._spec, self._plan.device
        table = self._supply.table()
        positions = None if model.positions is None else self._supply.lasting(first).embedding(model.positions)
        self._tell()
        stages = tuple(self._stage(share.device, share.blocks) for share in self._plan.shares)
        last = stages[-1].device
        with current(last):
            weights = self._supply.part(last)
            head = weights.head(model.head, self._supply.tied_to(table))
            norm = build_norm(model.norm, weights, self._backend)
        self._tell()
        if first.type == "cuda":
            torch.cuda.empty_cache()  # of what was read ahead, so that the K/V pool can have it
        return Model(model, weights.dtype, self._backend, self._cache, table, positions, stages, norm, head)

    def _stage(self, device: torch.device, blocks: range) -> Stage:
        away = [i for i in blocks if i in self._plan.offloaded]
        with current(device):
            layers = [self._layer(device, i) for i in blocks if i not in self._plan.offloaded]
            layers += self._ferried_layers(device, away) if away else []
        return Stage(device, self._ropes(device), tuple(layers))

    def _layer(self, device: torch.device, index: int) -> LayerFn:
        block, ropes = self._spec.blocks[index], self._ropes(device)
        layer = build_block(block, index, self._supply.part(device), self._backend, ropes)
        self._tell()
        return together(layer, device) if device.type == "cuda" else layer

    def _ferried_layers(self, device: torch.device, indices: list[int]) -> list[LayerFn]:
        """Blocks that live in RAM; all are there before the first is built, because the largest says how much room."""
        parcels = [self._parcel(device, i) for i in indices]
        ferry = Ferry(device, parcels)
        seconds = ferry.seconds()
        log.info("copying them takes %.2f s: no more than %.1f tokens a second for one sequence", seconds, 1 / seconds)
        layers: list[LayerFn] = []
        for order, (index, parcel) in enumerate(zip(indices, parcels, strict=True)):
            ferried = FerriedWeights(parcel.over(ferry.place_of(order)), self._supply.lasting(device))
            block = build_block(self._spec.blocks[index], index, ferried, self._backend, self._ropes(device))
            layers.append(FerriedLayer(block, order, ferry))
        return layers

    def _parcel(self, device: torch.device, index: int) -> Parcel:
        weights = self._supply.part(device)
        parcel = pack({linear.key: weights.linear(linear) for linear in linears_of(self._spec.blocks[index])})
        self._tell()
        return parcel

    def _tell(self) -> None:
        self._done += 1
        self._progress(self._done, len(self._spec.blocks) + 2)


def together(layer: LayerFn, device: torch.device) -> LayerFn:
    """The layer with its tensors in one run of memory.

    Each apart would settle where something was let go that preparing it needed, and leave holes that nobody can use
    but that the device has to have: 1 GB of a 70B.
    """
    hollow, run = gather(layer, lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8, device=device))
    return over(hollow, run)


def _checkpoints(source: ModelSource, plan: Plan) -> Iterator[Checkpoint]:
    """The folder's checkpoint for the embedding, each block and the head; a GPU's parts are read ahead."""
    if plan.device.type != "cuda":
        return repeat(source.checkpoint)
    return read_ahead(source.checkpoint, list(_parts(source, plan)))


def _parts(source: ModelSource, plan: Plan) -> Iterator[Part]:
    yield Part(() if plan.table_stays else (_table_name(source),), plan.device)
    for block, device in zip(source.spec.blocks, plan.block_devices, strict=True):
        yield _part(source, linears_of(block), device)
    yield _part(source, (source.spec.head.linear,), plan.shares[-1].device)


def _part(source: ModelSource, linears: tuple[spec.Linear, ...], device: torch.device) -> Part:
    names = [name for linear in linears for name in source.checkpoint.names_of(linear.key)]
    return Part(tuple(names), device)


def _table_name(source: ModelSource) -> str:
    return f"{source.spec.embedding.key}.weight"
