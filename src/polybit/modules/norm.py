"""Norms over the hidden state and over attention heads."""

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from typing_extensions import assert_never

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.weights import NormFn, Weights


@dataclass(frozen=True)
class RmsNorm:
    """Data, so that a product that follows can take it along."""

    weight: Tensor
    eps: float
    offset: float
    backend: Backend

    def __call__(self, x: Tensor) -> Tensor:
        return self.backend.rms_norm(x, self.weight, self.eps, self.offset)


def build_norm(node: spec.Norm, weights: Weights, backend: Backend) -> NormFn:
    """[..., W] -> [..., W]"""
    weight = weights.vector(f"{node.key}.weight")
    match node:
        case spec.RMSNorm(eps=eps, offset=offset):
            return RmsNorm(weight, eps, offset, backend)
        case spec.LayerNorm(key=key, eps=eps, bias=has_bias):
            bias = weights.vector(f"{key}.bias") if has_bias else None
            return partial(backend.layer_norm, weight=weight, bias=bias, eps=eps)
    assert_never(node)


def build_head_norm(node: spec.Norm | None, head_dim: int, weights: Weights, backend: Backend) -> NormFn | None:
    """[T, H, D] -> [T, H, D]: over each head (weight [D] or [H, D]), or over all of them where the node is so wide.

    An RmsNorm where all heads have one weight.
    """
    if node is None:
        return None
    norm = build_norm(node, weights, backend)
    if node.width == head_dim:
        return _of_heads(norm) if isinstance(norm, RmsNorm) else norm
    return lambda heads: norm(heads.flatten(1)).view_as(heads)


def _of_heads(norm: RmsNorm) -> NormFn:
    """An EXL2 file repeats the weight for every head."""
    weight = norm.weight
    if weight.dim() == 1:
        return norm
    return replace(norm, weight=weight[0]) if bool((weight == weight[0]).all()) else norm.__call__
