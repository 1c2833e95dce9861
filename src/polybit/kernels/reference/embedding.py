"""Rows of the token embedding."""

from torch import Tensor


def embedding(tokens: Tensor, weight: Tensor, scale: float) -> Tensor:
    return weight[tokens].float() * scale
