"""Rotary position embedding (arXiv 2104.09864)."""

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    cos, sin = cos[positions][:, None, :], sin[positions][:, None, :]
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [T, H, D]; cos and sin [T, 1, dim/2]."""
    dim = 2 * cos.shape[-1]
    rotated, kept = x[..., :dim].float(), x[..., dim:]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated.chunk(2, -1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    out = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((out.to(x.dtype), kept), -1)
