"""Norms of heads, whose weight files hold once or for every head."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from polybit import spec
from polybit.kernels import reference
from polybit.modules.norm import RmsNorm, build_head_norm

HEADS, DIM = 3, 8


def built(weight: Tensor) -> Any:
    holder: Any = SimpleNamespace(vector=lambda name: weight)
    return build_head_norm(spec.RMSNorm("norm", DIM, 1e-6), DIM, holder, reference)


def expected(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("repeated", [False, True])
def test_one_weight_for_all_heads_is_left_to_attention(repeated: bool) -> None:
    weight, x = torch.rand(DIM), torch.randn(5, HEADS, DIM)
    norm = built(weight.repeat(HEADS, 1) if repeated else weight)
    assert isinstance(norm, RmsNorm)
    assert torch.equal(norm.weight, weight)
    torch.testing.assert_close(norm(x), expected(x, weight))


def test_heads_with_weights_of_their_own_are_normed_before_it() -> None:
    weight, x = torch.rand(HEADS, DIM), torch.randn(5, HEADS, DIM)
    norm = built(weight)
    assert not isinstance(norm, RmsNorm)
    torch.testing.assert_close(norm(x), expected(x, weight))
