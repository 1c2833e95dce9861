"""A decode step's attention against its parts in float64: norms, rope, the loop over keys, and what stands in pages."""

import math
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from kernels.definitions import one_query, paged, turned
from polybit.kernels.protocol import Backend, HeadNorm, Rotation

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """Sequences by their lengths, the new token included, and the heads that look at them."""

    lengths: tuple[int, ...]
    heads: tuple[int, int] = (4, 2)  # Hq, Hkv
    dim: int = 16
    page: int = 4
    rotated: int | None = None  # features; None: no rope
    interleaved: bool = False
    offset: float | None = None  # of the norms of q and k; None: no norms
    window: int | None = None
    softcap: float | None = None


CASES = {
    "first token": Case((1,), dim=8, rotated=8),
    "several sequences": Case((13, 5, 1, 4), dim=20, rotated=20),
    "one key head": Case((10, 4), heads=(6, 1), dim=20, rotated=12),
    "a head for each": Case((71, 6), heads=(3, 3), rotated=16, interleaved=True),
    "part of a head, interleaved": Case((30, 2), heads=(6, 2), dim=40, rotated=24, interleaved=True),
    "no rope": Case((17, 8)),
    "norms": Case((17, 8), rotated=16, offset=0.0),
    "norms and no rope": Case((5,), heads=(6, 2), dim=20, offset=0.0),
    "offset norms, interleaved": Case((9, 40), rotated=8, interleaved=True, offset=1.0),
    "window": Case((31, 3, 6), rotated=16, window=5),
    "window of one": Case((7, 1), rotated=16, window=1),
    "softcap": Case((21, 1), rotated=16, softcap=2.0),
    "everything": Case((300, 47, 1), heads=(8, 1), rotated=8, offset=1.0, window=133, softcap=3.0),
    "many keys": Case((701, 3), page=256, rotated=16),
    "many keys in small pages": Case((420, 129, 257), page=100, rotated=16),
    "a chunk and the new token": Case((129, 128, 257), page=128, heads=(2, 1), rotated=16),
    "head of 80": Case((12,), heads=(2, 1), dim=80, rotated=32),
    "head of 128": Case((400, 5), heads=(8, 1), dim=128, page=256, rotated=128),
    "head of 256": Case((150,), heads=(2, 1), dim=256, page=64, rotated=64, offset=1.0),
    "many heads of one": Case((40,), heads=(48, 1), rotated=16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_decode_attention(backend, device, dtype, random, case) -> None:
    """Pages in random order; what no token fills is NaN, and so is the new token's place."""
    _check(backend, device, dtype, random, case)


@pytest.mark.parametrize("case", [CASES["several sequences"], CASES["everything"]], ids=["several", "everything"])
def test_in_bfloat16(backend, device, random, case) -> None:
    _check(backend, device, torch.bfloat16, random, case)


def test_a_step_whose_sequences_divide_their_keys_differently(backend, device, random) -> None:
    """The same memory serves launches of one and of many programs a head, one after another."""
    for lengths in ((1000,), (1,), (260, 900, 1), (1000,)):
        _check(backend, device, torch.float16, random, Case(lengths, heads=(2, 1), page=256, rotated=16))


@pytest.mark.parametrize("heads", [(4, 1), (6, 2)])
def test_many_parts_are_joined_in_rounds(backend, device, random, monkeypatch, heads) -> None:
    if backend.NAME in ("reference", "cpu"):
        pytest.skip("it divides nothing")
    module = sys.modules[backend.decode_attention.__module__]
    monkeypatch.setattr(module, "num_processors", lambda device: 40)
    monkeypatch.setattr(module, "JOINED_ELEMENTS", 4 * 4 * 16)
    _check(backend, device, torch.float32, random, Case((1300, 1, 200), heads=heads, page=256, rotated=16))


def test_gives_the_same_bits_every_time(backend, device, random) -> None:
    """However the programs of a launch finish, what they found is joined in one order."""
    q, k, v = (torch.randn(1, heads, 64, generator=random).to(device, torch.float16) for heads in (8, 2, 2))
    pages = torch.randn(2, 8, 256, 2, 64, generator=random).to(device, torch.float16)
    table = torch.arange(8, dtype=torch.int32, device=device).view(1, 8)
    length = torch.tensor([1700], dtype=torch.int32, device=device)
    given = (q, k, v, *pages, table, length, None, None, None, 0.125, None, None)
    first, *others = (backend.decode_attention(*given) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def _check(backend: Backend, device: torch.device, dtype: torch.dtype, random: torch.Generator, case: Case) -> None:
    (num_heads, num_kv_heads), lengths, dim = case.heads, case.lengths, case.dim

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    keys, values = ([randn(n, num_kv_heads, dim) for n in lengths] for _ in range(2))
    k_pages, v_pages, table = paged(keys, values, case.page, random)
    places = [(table[s, (n - 1) // case.page], (n - 1) % case.page) for s, n in enumerate(lengths)]
    for place in places:
        k_pages[place] = v_pages[place] = math.nan
    widths = [heads * dim for heads in (num_heads, num_kv_heads, num_kv_heads)]
    columns = randn(len(lengths), sum(widths) + 32).to(device)[:, 32:].split(widths, 1)  # of one wide product
    q, k, v = (part.unflatten(1, (-1, dim)) for part in columns)
    norms = [None if case.offset is None else HeadNorm(randn(dim).to(device), EPS, case.offset) for _ in range(2)]
    angles = torch.rand(max(lengths), (case.rotated or 0) // 2, generator=random, dtype=torch.float64) * 100
    rotation = Rotation(angles.cos().float().to(device), angles.sin().float().to(device), case.interleaved)
    scale = 1 / math.sqrt(dim)
    found_pages = k_pages.to(device, copy=True), v_pages.to(device, copy=True)
    actual = backend.decode_attention(
        q,
        k,
        v,
        *found_pages,
        table.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        *norms,
        None if case.rotated is None else rotation,
        scale,
        case.window,
        case.softcap,
    )

    turns = angles[[n - 1 for n in lengths]]
    new_q, new_k = (turned(_normed(x, norm), turns, case.interleaved) for x, norm in zip((q, k), norms, strict=True))
    expected = []
    for s, n in enumerate(lengths):
        visible = slice(0 if case.window is None else max(0, n - case.window), n)
        seen = torch.cat((keys[s][:-1].double(), new_k[s : s + 1])), torch.cat((values[s][:-1], v[s : s + 1].cpu()))
        expected.append(one_query(new_q[s], seen[0][visible], seen[1][visible].double(), scale, case.softcap))
    assert actual.dtype == dtype
    assert_close(actual, torch.stack(expected), "attention")

    found = [torch.stack([pages[place] for place in places]).cpu() for pages in found_pages]
    assert_close(found[0], new_k)
    assert torch.equal(found[1], v.cpu())
    for pages, before in zip(found_pages, (k_pages, v_pages), strict=True):
        for place in places:
            pages[place] = math.nan
        assert torch.equal(pages.cpu().nan_to_num(), before.nan_to_num())


def _normed(x: Tensor, norm: HeadNorm | None) -> Tensor:
    """x [S, H, D] -> in float64"""
    x = x.double().cpu()
    if norm is None:
        return x
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * (norm.weight.double().cpu() + norm.offset)
