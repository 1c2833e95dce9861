"""Definitions of operations, written out for one thing at a time, in the type that they are given."""

import math

import torch
from torch import Tensor

from polybit.kernels.pages import QuantizedPages


def one_query(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
    """q [Hq, D]; k, v [n, Hkv, D], all of them visible."""
    group = q.shape[0] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = torch.einsum("hd,nhd->hn", q, k) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.einsum("hn,nhd->hd", logits.softmax(-1), v)


def turned(x: Tensor, angle: Tensor, interleaved: bool) -> Tensor:
    """x [T, H, D] by angle [T, dim/2]."""
    half = angle.shape[1]
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    rotated = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angle)[:, None]
    out = x.clone()
    out[..., first], out[..., second] = rotated.real, rotated.imag
    return out


def hadamard(size: int) -> Tensor:
    """Rows of Walsh functions in Sylvester's order, of length one; float64."""
    signs = [[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]
    return torch.tensor(signs, dtype=torch.float64) / math.sqrt(size)


def unpacked(pages: QuantizedPages) -> Tensor:
    """[pages, P, Hkv, D] float64, turned back; poisoned scales are NaN here too."""
    words, scales = pages.codes.cpu().long() & 0xFFFFFFFF, pages.scales.cpu().double()
    codes = torch.stack([words >> shift & (1 << pages.bits) - 1 for shift in range(0, 32, pages.bits)], -1)
    groups = (codes - (1 << pages.bits - 1)).flatten(-2).unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]
    return (groups @ hadamard(groups.shape[-1])).flatten(-2)


def paged(keys: list[Tensor], values: list[Tensor], page: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """Scatter sequences over shuffled pages; what no token fills stays NaN. -> k_pages, v_pages, page table"""
    counts = [-(-k.shape[0] // page) for k in keys]
    order = torch.randperm(sum(counts), generator=random)
    k_pages = torch.full((sum(counts), page, *keys[0].shape[1:]), math.nan, dtype=keys[0].dtype)
    v_pages = k_pages.clone()
    table = torch.zeros(len(keys), max(counts), dtype=torch.int32)
    taken = 0
    for s, (k, v, count) in enumerate(zip(keys, values, counts, strict=True)):
        table[s, :count] = order[taken : taken + count]
        for row in range(k.shape[0]):
            k_pages[table[s, row // page], row % page] = k[row]
            v_pages[table[s, row // page], row % page] = v[row]
        taken += count
    return k_pages, v_pages, table
