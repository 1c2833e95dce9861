"""What is measured: a folder or a synthetic model, described before it is loaded and loaded when asked."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polybit import spec
from polybit.bench.recipe import Recipe, choose_recipe
from polybit.bench.shapes import read_wish
from polybit.bench.synthetic import SyntheticWeights
from polybit.errors import OutOfMemory
from polybit.format import exl2, gptq
from polybit.format.dense import read_dense
from polybit.format.exl2 import Exl2Tensor
from polybit.format.gptq import GptqTensor
from polybit.kernels.protocol import Backend
from polybit.kernels.registry import get_backend
from polybit.model.device import choose_device, choose_dtype
from polybit.model.model import LoadProgress, Model, build_model, load
from polybit.model.options import LoadOptions
from polybit.model.plan import free_bytes
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
        return load(self.source, progress)


@dataclass(frozen=True)
class SyntheticSubject:
    name: str
    weights: SyntheticWeights
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
        return build_model(self.model, self.weights, self.place.device, self.place.backend, False, progress)


@dataclass(frozen=True)
class Request:
    """What is to be measured, as the command line names it; either a folder or a wish."""

    folder: str | None
    wish: str | None  # `llama-8b@4.0`
    head_bits: int  # of what is wished for
    seed: int
    options: LoadOptions


def open_subject(request: Request) -> Subject:
    """Raises what opening a folder does; ConfigError, JobError or OutOfMemory for a wish that cannot be granted."""
    options = request.options
    device = choose_device(options.device)
    place = Place(device, choose_dtype(options.dtype, device), get_backend(options.backend))
    if request.wish is not None:
        return _synthesize(request.wish, request, place)
    assert request.folder is not None
    return FolderSubject(open_model(request.folder, options), place)


def _synthesize(wish: str, request: Request, place: Place) -> SyntheticSubject:
    """Weights are held packed unless the options say otherwise: bits are what was asked for."""
    read = read_wish(wish)
    model = with_options(read.model, request.options)
    recipe = choose_recipe(model, read.bits, request.head_bits)
    unpacked = bool(request.options.unpacked)
    weights = SyntheticWeights(model, recipe, request.seed, place.backend, place.device, place.dtype, unpacked)
    subject = SyntheticSubject(f"{read.name}@{read.bits:g}", weights, place)
    _check_fits(subject, unpacked)
    return subject


def _check_fits(subject: SyntheticSubject, unpacked: bool) -> None:
    needed, free = _held_bytes(subject, unpacked), free_bytes(subject.place.device)
    if needed > free:
        raise OutOfMemory(
            f"{subject.name} needs {needed / 1e9:.1f} GB of memory on {subject.place.device}, but {free / 1e9:.1f} GB "
            f"are free; {'use --no-unpacked, or ' if unpacked else ''}ask for fewer bits or a smaller shape"
        )


def _held_bytes(subject: SyntheticSubject, unpacked: bool) -> int:
    """Matrices, and the embeddings at 16 bits."""
    model, itemsize = subject.model, subject.place.dtype.itemsize
    tables = [table for table in (model.embedding, model.positions) if table is not None]
    matrices = [
        linear.in_features * linear.padded_out_features * itemsize if unpacked else subject.stored_bits(linear) // 8
        for linear in (*model.linears, model.head.linear)
    ]
    return sum(matrices) + sum(torch.float16.itemsize * table.num_rows * table.width for table in tables)
