"""Groups of features turned, rounded to few bits, and read again: the definition is kernels/pages.py's."""

import functools

import torch
from torch import Tensor

from polybit.kernels.pages import SCALE, WORD


def turn(x: Tensor, group: int) -> Tensor:
    """Walsh-Hadamard transform of each group of the last axis, fp32. Its own inverse."""
    groups: Tensor = x.float().unflatten(-1, (-1, group))
    return (groups @ hadamard(group, x.device)).flatten(-2)


@functools.cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's matrix, orthonormal; `size` is a power of two."""
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.mul(size**-0.5)


def quantize(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """x [..., D], turned -> codes [..., D * bits / 32] int32 and scales [..., D / group] fp16"""
    grouped, half = x.float().unflatten(-1, (-1, group)), 1 << bits - 1
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    scales = (torch.where(high >= -low, high, low) / -half).to(SCALE)
    steps = scales.float()
    levels = torch.where(steps == 0, 0.0, grouped / steps)
    codes = ((levels + 0.5).floor() + half).clamp(0, 2 * half - 1).to(torch.uint8).flatten(-2)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes.view(WORD), scales.squeeze(-1)


def dequantize(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """What `quantize` gives -> [..., D] fp32, still turned."""
    bytes_ = codes.view(torch.uint8)
    if bits == 4:
        bytes_ = torch.stack((bytes_ & 15, bytes_ >> 4), -1).flatten(-2)
    levels: Tensor = (bytes_.float() - (1 << bits - 1)).unflatten(-1, (scales.shape[-1], -1))
    return (levels * scales.float()[..., None]).flatten(-2)
