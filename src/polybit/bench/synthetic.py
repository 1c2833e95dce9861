"""Weights of a model that nobody trained: random EXL2 matrices, made where they are used, the same for a seed."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from polybit import spec
from polybit.bench.recipe import Recipe
from polybit.format.exl2 import Exl2Tensor, encode_layout
from polybit.format.packing import CODES_PER_WORD
from polybit.kernels.protocol import Backend
from polybit.model.device import current
from polybit.model.pinned import seen_by
from polybit.model.plan import Plan
from polybit.model.source import vector_shapes
from polybit.model.weights import GatedLinear, Linear, joined
from polybit.modules.weights import JointFn, NormFn

ROWS_AT_ONCE = 1 << 12
NUM_CODES = 16
MEAN_FOURTH_POWER = sum((code + 1) ** 4 for code in range(NUM_CODES)) / NUM_CODES  # of the square roots of scales


@dataclass(frozen=True)
class SyntheticWeights:
    """`ModelWeights` of random numbers, sized so that activations stay near 1 through any number of blocks."""

    model: spec.Model
    recipe: Recipe
    seed: int
    backend: Backend
    device: torch.device
    dtype: torch.dtype
    unpacked: bool

    def linear(self, node: spec.Linear) -> Linear:
        packed = self.tensor(node)
        matrix = self.backend.prepare_exl2(packed, node.prescale, self.device, self.dtype, self.unpacked)
        bias = None if packed.bias is None else packed.bias.to(self.dtype) * node.prescale
        return Linear(matrix, bias, node.out_features, self.backend)

    def joint(self, nodes: Sequence[spec.Linear], norm: NormFn | None) -> JointFn:
        return joined([self.linear(node) for node in nodes], norm, self.backend, self.dtype)

    def gated(self, node: spec.Linear, activation: spec.Activation) -> GatedLinear:
        return GatedLinear(self.linear(node), activation)

    def vector(self, name: str) -> Tensor:
        """Norms get weights of 1 and -1: all of one sign would let the mean of a uniform code add up over blocks."""
        random, shape = self._random(name), self._shapes[name]
        if name in self._offsets:
            signs = 2 * torch.randint(0, 2, shape, generator=random, device=self.device) - 1
            return (signs - self._offsets[name]).to(self.dtype)
        values = torch.randn(shape, generator=random, device=self.device)
        return (values / math.sqrt(shape[-1])).to(self.dtype)

    def embedding(self, node: spec.Embedding) -> Tensor:
        table = torch.empty(node.num_rows, node.width, dtype=torch.float16, device=self.device)
        self.fill(table, node)
        return table

    def fill(self, table: Tensor, node: spec.Embedding) -> None:
        """Random rows into `table`, wherever it lies, without a second one on the device."""
        random = self._random(node.key)
        for rows in torch.split(table, ROWS_AT_ONCE):
            rows.copy_(torch.randn(rows.shape, generator=random, device=self.device))

    def head(self, node: spec.Head, tied_to: Tensor | None) -> Linear:
        """Always a quantized matrix of its own, as a conversion makes one for a tied model too."""
        return self.linear(node.linear)

    def tensor(self, node: spec.Linear) -> Exl2Tensor:
        """The matrix `node` as a file would hold it."""
        layout, width = self.recipe.layout(node), node.padded_out_features
        random, order = self._random(node.key), self._random(f"order of {self._inputs.get(node.key, node.key)}")
        scale_max = [_scale_max(group.bits, node.in_features) for group in layout.groups]
        return Exl2Tensor(
            q_weight=self._words(random, layout.packed_rows, width),
            q_scale=self._words(random, len(layout.groups), width // CODES_PER_WORD),
            q_scale_max=torch.tensor(scale_max, device=self.device).half(),
            q_groups=encode_layout(layout).to(self.device),
            q_invperm=torch.randperm(node.in_features, generator=order, device=self.device).int(),
            bias=torch.randn(width, generator=random, device=self.device).half() if node.bias else None,
        )

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shapes[0] for name, shapes in vector_shapes(self.model).items()}

    @cached_property
    def _offsets(self) -> dict[str, float]:
        """What is added to the weight of each norm."""
        norms = [norm for block in self.model.blocks for norm in spec.block_norms(block)] + [self.model.norm]
        return {f"{norm.key}.weight": norm.offset if isinstance(norm, spec.RMSNorm) else 0.0 for norm in norms}

    @cached_property
    def _inputs(self) -> Mapping[str, str]:
        """The first of the matrices that share an input, and so an order, for each of them."""
        shared = [inputs.linears for block in self.model.blocks for inputs in spec.shared_inputs(block)]
        return {linear.key: linears[0].key for linears in shared for linear in linears}

    def _random(self, name: str) -> torch.Generator:
        """Its own for each name: a matrix is the same whatever was made before it."""
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=7).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little"))

    def _words(self, random: torch.Generator, *shape: int) -> Tensor:
        return torch.randint(-(1 << 31), 1 << 31, shape, generator=random, dtype=torch.int32, device=self.device)


@dataclass(frozen=True)
class SyntheticSupply:
    """The weights of all parts, wherever a plan puts them."""

    weights: SyntheticWeights
    plan: Plan

    def table(self) -> Tensor:
        node, device = self.weights.model.embedding, self.weights.device
        if not self.plan.table_stays:
            return self.weights.embedding(node)
        with current(device):
            pinned = torch.empty(node.num_rows, node.width, dtype=torch.float16, pin_memory=True)
        self.weights.fill(pinned, node)
        return seen_by(device, pinned)

    def tied_to(self, table: Tensor) -> None:
        """The head always has a matrix of its own."""

    def part(self, device: torch.device) -> SyntheticWeights:
        return replace(self.weights, device=device)

    def lasting(self, device: torch.device) -> SyntheticWeights:
        return replace(self.weights, device=device)


def _scale_max(bits: int, in_features: int) -> float:
    """So that weights of uniform codes and scales have a mean square of 1 / in_features."""
    mean_square = (4**bits - 1) / 12 + 0.25  # of q - 2^(bits-1), whose mean is -1/2
    return 256 / math.sqrt(mean_square * MEAN_FOURTH_POWER * in_features)
