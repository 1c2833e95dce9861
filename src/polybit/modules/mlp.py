"""The feed-forward part of a block: gated, plain, or a sparse mixture of gated experts."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import assert_never

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.weights import GatedFn, JointFn, LinearFn, NormFn, Weights


class MlpFn(Protocol):
    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, E], not normed yet -> [T, E], added to the residual if there is one."""


@dataclass(frozen=True)
class GatedMlp:
    gate_up: JointFn
    down: GatedFn

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        gate, up = self.gate_up(x)
        return self.down(gate, up, residual)


@dataclass(frozen=True)
class PlainMlp:
    up: JointFn  # of one matrix
    down: LinearFn
    activation: spec.Activation
    backend: Backend

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        (up,) = self.up(x)
        return self.down(self.backend.activate(up, self.activation), residual)


@dataclass(frozen=True)
class SparseMoe:
    norm: NormFn | None
    dtype: torch.dtype
    router: Tensor  # [experts, E]
    experts: tuple[MlpFn, ...]
    top_k: int
    renormalise: bool

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = (x if self.norm is None else self.norm(x)).to(self.dtype)
        shares, chosen = self._route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, rank = (chosen == e).nonzero(as_tuple=True)
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]) * shares[rows, rank, None].to(x.dtype))
        return out if residual is None else residual + out

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares (fp32) and indices of each token's experts, both [T, top_k]."""
        logits = x.float() @ self.router.float().T
        shares, chosen = logits.softmax(-1).topk(self.top_k, dim=-1)
        if self.renormalise:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares, chosen


def build_mlp(node: spec.Mlp, norm: NormFn | None, weights: Weights, backend: Backend) -> MlpFn:
    """`norm` comes before it."""
    match node:
        case spec.GatedMlp(gate=gate, up=up, down=down, activation=activation):
            return GatedMlp(weights.joint((gate, up), norm), weights.gated(down, activation))
        case spec.PlainMlp(up=up, down=down, activation=activation):
            return PlainMlp(weights.joint((up,), norm), weights.linear(down), activation, backend)
        case spec.SparseMoe():
            experts = tuple(build_mlp(expert, None, weights, backend) for expert in node.experts)
            router = weights.vector(f"{node.router_key}.weight")
            return SparseMoe(norm, weights.dtype, router, experts, node.top_k, node.renormalise)
    assert_never(node)
