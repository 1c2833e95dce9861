"""A transformer block: norms and residuals around attention and MLP; the residual stream may be the wider type."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import assert_never

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.attention import Attention, build_attention
from polybit.modules.mlp import MlpFn, build_mlp
from polybit.modules.norm import NormFn, build_norm
from polybit.modules.rope import RopeTables
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import Weights


@dataclass(frozen=True)
class AttentionLayer:
    """x + post(attn(pre(x)))"""

    norm: NormFn | None
    attn: Attention
    post_norm: NormFn | None
    dtype: torch.dtype

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        h = _normed(self.norm, x, self.dtype)
        if self.post_norm is None:
            return self.attn(h, step, store, residual=x)
        return x + self.post_norm(self.attn(h, step, store))


@dataclass(frozen=True)
class MlpLayer:
    """x + post(mlp(pre(x)))"""

    norm: NormFn | None
    mlp: MlpFn
    post_norm: NormFn | None
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        h = _normed(self.norm, x, self.dtype)
        return self.mlp(h, x) if self.post_norm is None else x + self.post_norm(self.mlp(h))


@dataclass(frozen=True)
class SequentialLayer:
    attn: AttentionLayer
    mlp: MlpLayer

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        return self.mlp(self.attn(x, step, store))


@dataclass(frozen=True)
class ParallelLayer:
    """x + attn(norm(x)) + mlp(norm(x))"""

    norm: NormFn
    attn: Attention
    mlp: MlpFn
    dtype: torch.dtype

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        h = _normed(self.norm, x, self.dtype)
        return self.mlp(h, self.attn(h, step, store, residual=x))


def _normed(norm: NormFn | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    return (x if norm is None else norm(x)).to(dtype)


Layer = SequentialLayer | ParallelLayer


def build_block(node: spec.Block, layer: int, weights: Weights, backend: Backend, ropes: RopeTables) -> Layer:
    attn = build_attention(node.attn, layer, weights, backend, ropes)
    mlp = build_mlp(node.mlp, weights, backend)
    match node:
        case spec.SequentialBlock():
            return SequentialLayer(
                AttentionLayer(
                    _norm(node.attn_norm, weights, backend),
                    attn,
                    _norm(node.attn_post_norm, weights, backend),
                    weights.dtype,
                ),
                MlpLayer(
                    _norm(node.mlp_norm, weights, backend),
                    mlp,
                    _norm(node.mlp_post_norm, weights, backend),
                    weights.dtype,
                ),
            )
        case spec.ParallelBlock(norm=norm):
            return ParallelLayer(build_norm(norm, weights, backend), attn, mlp, weights.dtype)
    assert_never(node)


def _norm(node: spec.Norm | None, weights: Weights, backend: Backend) -> NormFn | None:
    return None if node is None else build_norm(node, weights, backend)
