"""Norms over the hidden state and over attention heads."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from typing_extensions import assert_never

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.weights import Weights

NormFn = Callable[[Tensor], Tensor]


def build_norm(node: spec.Norm, weights: Weights, backend: Backend) -> NormFn:
    """[..., W] -> [..., W]"""
    weight = weights.vector(f"{node.key}.weight")
    match node:
        case spec.RMSNorm(eps=eps, offset=offset):
            return partial(backend.rms_norm, weight=weight, eps=eps, offset=offset)
        case spec.LayerNorm(key=key, eps=eps, bias=has_bias):
            bias = weights.vector(f"{key}.bias") if has_bias else None
            return partial(backend.layer_norm, weight=weight, bias=bias, eps=eps)
    assert_never(node)


def build_head_norm(node: spec.Norm | None, head_dim: int, weights: Weights, backend: Backend) -> NormFn | None:
    """[T, H, D] -> [T, H, D]: over each head (weight [D] or [H, D]), or over all of them where the node is so wide."""
    if node is None:
        return None
    norm = build_norm(node, weights, backend)
    if node.width == head_dim:
        return norm
    return lambda heads: norm(heads.flatten(1)).view_as(heads)
