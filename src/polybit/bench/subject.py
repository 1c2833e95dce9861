"""What is measured: a folder or a synthetic model, described before it is loaded and loaded when asked."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polybit import spec
from polybit.bench.recipe import Recipe, choose_recipe
from polybit.bench.shapes import read_wish
from polybit.bench.synthetic import SyntheticSupply, SyntheticWeights
from polybit.format import exl2, gptq
from polybit.format.dense import read_dense
from polybit.format.exl2 import Exl2Tensor
from polybit.format.gptq import GptqTensor
from polybit.kernels.pages import read_bits
from polybit.kernels.protocol import Backend
from polybit.kernels.registry import get_backend
from polybit.model.device import choose_dtype
from polybit.model.footprint import footprint
from polybit.model.load import LoadProgress, build, build_from
from polybit.model.machine import this_machine
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.plan import plan_memory
from polybit.model.setup import Setup, set_up, tell
from polybit.model.sizes import matrix_size
from polybit.model.source import ModelSource, head_is_tied, open_model, with_options

Stored = Exl2Tensor | GptqTensor | Tensor  # a plain one is [N, K]


@dataclass(frozen=True)
class Place:
    """Where and with what a model computes."""

    device: torch.device
    dtype: torch.dtype
    backend: Backend


class Subject(Protocol):
    """A model that can be measured."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> spec.Model: ...

    @property
    def place(self) -> Place: ...

    def stored_bits(self, linear: spec.Linear) -> int:
        """What a matrix takes as stored, everything that belongs to it included."""

    def family(self, linear: spec.Linear) -> Hashable:
        """Matrices of one family go through the same code of a kernel."""

    def stored(self, linear: spec.Linear) -> Stored:
        """The matrix as stored."""

    def build(self, progress: LoadProgress | None) -> Model: ...


@dataclass(frozen=True)
class FolderSubject:
    source: ModelSource
    setup: Setup
    place: Place

    @property
    def name(self) -> str:
        return self.source.folder.name

    @property
    def model(self) -> spec.Model:
        return self.source.spec

    def stored_bits(self, linear: spec.Linear) -> int:
        if linear == self.model.head.linear and head_is_tied(self.model, self.source.checkpoint):
            return 8 * self.source.checkpoint.num_bytes(f"{self.model.embedding.key}.weight")
        return matrix_size(self.source, linear).stored_bits

    def family(self, linear: spec.Linear) -> Hashable:
        checkpoint = self.source.checkpoint
        kind = checkpoint.kind(linear.key)
        inside = exl2.read_layout(checkpoint, linear.key) if kind == "exl2" else linear.in_features
        return kind, inside, linear.out_features

    def stored(self, linear: spec.Linear) -> Stored:
        checkpoint = self.source.checkpoint
        match checkpoint.kind(linear.key):
            case "exl2":
                return exl2.read(checkpoint, linear.key, linear).to(self.place.device)
            case "gptq":
                offset = gptq.zero_offset(self.source.config)
                return gptq.read(checkpoint, linear.key, linear, offset).to(self.place.device)
            case None if linear == self.model.head.linear and head_is_tied(self.model, checkpoint):
                return checkpoint.tensor(f"{self.model.embedding.key}.weight").to(self.place.device)
            case _:
                return read_dense(checkpoint, linear)[0].to(self.place.device)

    def build(self, progress: LoadProgress | None) -> Model:
        tell(self.setup, self.source)
        return build(self.source, self.setup, progress)


@dataclass(frozen=True)
class SyntheticSubject:
    name: str
    weights: SyntheticWeights
    setup: Setup
    place: Place

    @property
    def model(self) -> spec.Model:
        return self.weights.model

    @property
    def recipe(self) -> Recipe:
        return self.weights.recipe

    def stored_bits(self, linear: spec.Linear) -> int:
        return self.recipe.stored_bits(linear)

    def family(self, linear: spec.Linear) -> Hashable:
        return self.recipe.layout(linear), linear.out_features

    def stored(self, linear: spec.Linear) -> Stored:
        return self.weights.tensor(linear)

    def build(self, progress: LoadProgress | None) -> Model:
        return build_from(self.model, SyntheticSupply(self.weights, self.setup.plan), self.setup, progress)


@dataclass(frozen=True)
class Request:
    """What is to be measured, as the command line names it; either a folder or a wish."""

    folder: str | None
    wish: str | None  # `llama-8b@4.0`
    head_bits: int  # of what is wished for
    seed: int
    options: LoadOptions


def open_subject(request: Request) -> Subject:
    """Raises what opening a folder does, ConfigError or JobError for a wish that cannot be granted, or OutOfMemory."""
    if request.wish is not None:
        return _synthesize(request.wish, request)
    assert request.folder is not None
    source = open_model(request.folder, request.options)
    setup = set_up(source, cache_tokens=0)
    return FolderSubject(source, setup, _place(setup))


def _synthesize(wish: str, request: Request) -> SyntheticSubject:
    """Weights are held packed unless the options say otherwise: bits are what was asked for."""
    read, options = read_wish(wish), request.options
    model, name = with_options(read.model, options), f"{read.name}@{read.bits:g}"
    recipe = choose_recipe(model, read.bits, request.head_bits)
    setup = _set_up(model, recipe, options, name)
    place = _place(setup)
    weights = SyntheticWeights(
        model, recipe, request.seed, place.backend, place.device, place.dtype, unpacked=setup.unpacked
    )
    return SyntheticSubject(name, weights, setup, place)


def _set_up(model: spec.Model, recipe: Recipe, options: LoadOptions, name: str) -> Setup:
    """As `set_up` does for a folder."""
    machine, unpacked = this_machine(options), bool(options.unpacked)
    device = machine.budgets[0].device
    dtype, backend = choose_dtype(options.dtype, device), get_backend(options.backend, device)
    cache = read_bits(options.cache)

    def held(linear: spec.Linear) -> int:
        width = linear.padded_out_features
        if unpacked:
            return (linear.in_features + linear.bias) * width * dtype.itemsize
        return backend.exl2_bytes(recipe.layout(linear), width, dtype) + linear.bias * width * dtype.itemsize

    sizes = footprint(
        model,
        held,
        dtype,
        table_itemsize=torch.float16.itemsize,
        head_is_table=False,
        holds_scores=backend.HOLDS_SCORES,
        cache=cache,
        kept=backend.KEPT_BYTES,
        unpacked=unpacked,
        graphs=options.graphs,
    )
    plan = plan_memory(sizes, machine, cache_tokens=0, offload=options.offload, what=name)
    return Setup(plan, sizes, dtype, backend, unpacked, cache)


def _place(setup: Setup) -> Place:
    return Place(setup.plan.device, setup.dtype, setup.backend)
