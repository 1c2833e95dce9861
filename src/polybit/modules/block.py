"""A transformer block: norms and residuals around attention and MLP; the residual stream may be the wider type."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import assert_never

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.attention import Attention, build_attention
from polybit.modules.mlp import MlpFn, build_mlp
from polybit.modules.norm import build_norm
from polybit.modules.rope import RopeTables
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import NormFn, Weights


@dataclass(frozen=True)
class AttentionLayer:
    """x + post(attn(x)); the norm before it is the attention's."""

    attn: Attention
    post_norm: NormFn | None

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        if self.post_norm is None:
            return self.attn(x, step, store, residual=x)
        return x + self.post_norm(self.attn(x, step, store))


@dataclass(frozen=True)
class MlpLayer:
    """x + post(mlp(x)); the norm before it is the MLP's."""

    mlp: MlpFn
    post_norm: NormFn | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.mlp(x, x) if self.post_norm is None else x + self.post_norm(self.mlp(x))


@dataclass(frozen=True)
class SequentialLayer:
    attn: AttentionLayer
    mlp: MlpLayer

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        return self.mlp(self.attn(x, step, store))


@dataclass(frozen=True)
class ParallelLayer:
    """x + attn(x) + mlp(x); the same norm is before both."""

    attn: Attention
    mlp: MlpFn

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        return self.mlp(x, self.attn(x, step, store, residual=x))


Layer = SequentialLayer | ParallelLayer


def build_block(node: spec.Block, layer: int, weights: Weights, backend: Backend, ropes: RopeTables) -> Layer:
    match node:
        case spec.SequentialBlock():
            attn_norm, mlp_norm = _norm(node.attn_norm, weights, backend), _norm(node.mlp_norm, weights, backend)
            attn = build_attention(node.attn, layer, attn_norm, weights, backend, ropes)
            mlp = build_mlp(node.mlp, mlp_norm, weights, backend)
            return SequentialLayer(
                AttentionLayer(attn, _norm(node.attn_post_norm, weights, backend)),
                MlpLayer(mlp, _norm(node.mlp_post_norm, weights, backend)),
            )
        case spec.ParallelBlock():
            norm = build_norm(node.norm, weights, backend)
            attn = build_attention(node.attn, layer, norm, weights, backend, ropes)
            return ParallelLayer(attn, build_mlp(node.mlp, norm, weights, backend))
    assert_never(node)


def _norm(node: spec.Norm | None, weights: Weights, backend: Backend) -> NormFn | None:
    return None if node is None else build_norm(node, weights, backend)
