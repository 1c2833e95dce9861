"""Paged attention against a loop over single queries in float64."""

import math
from dataclasses import dataclass

import pytest
import torch

from closeness import assert_close
from kernels.definitions import one_query, paged


@dataclass(frozen=True)
class Case:
    """Sequences of n new tokens after m old ones, and the heads that look at them."""

    sequences: tuple[tuple[int, int], ...]
    heads: tuple[int, int] = (4, 2)  # Hq, Hkv
    dim: int = 16
    page: int = 4
    window: int | None = None
    softcap: float | None = None


CASES = {
    "one token": Case(((1, 0),), dim=8),
    "several sequences": Case(((1, 12), (3, 2), (9, 0)), dim=20),
    "one key head": Case(((2, 9), (1, 3)), heads=(6, 1), dim=20),
    "a head for each": Case(((1, 70), (2, 5)), heads=(3, 3)),
    "window": Case(((1, 30), (9, 3)), window=5),
    "window of one": Case(((4, 3),), window=1),
    "softcap": Case(((1, 20), (5, 0)), softcap=2.0),
    "both": Case(((2, 90), (40, 7)), heads=(8, 1), window=33, softcap=3.0),
    "many keys": Case(((1, 700), (1, 3)), page=256),
    "many keys, several queries": Case(((3, 420), (1, 129), (2, 0)), page=64),
    "prompt": Case(((70, 0), (1, 60), (33, 40)), heads=(2, 1), page=64),
    "equal lengths": Case(((6, 3),) * 3 + ((1, 8), (1, 8), (6, 3)), window=7),
    "many of equal lengths": Case(((1, 999),) * 9, page=250),
    "equal prompts": Case(((90, 0),) * 4, heads=(6, 2), page=90, softcap=4.0),
    "head of 80": Case(((2, 11),), heads=(2, 1), dim=80),
    "head of 192": Case(((1, 40),), heads=(2, 1), dim=192, page=64),
    "head of 256": Case(((3, 17),), heads=(2, 1), dim=256),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention(backend, device, dtype, random, case) -> None:
    """Pages in random order; what no token fills is NaN."""
    _check(backend, device, dtype, random, case)


@pytest.mark.parametrize("case", [CASES["several sequences"], CASES["prompt"]], ids=["several sequences", "prompt"])
def test_attention_in_bfloat16(backend, device, random, case) -> None:
    _check(backend, device, torch.bfloat16, random, case)


@pytest.mark.parametrize("length", [511, 700])
def test_long_prompts_in_runs(backend, device, random, length) -> None:
    """More queries than are held at once, with a window that starts inside a run."""
    _check(backend, device, torch.float32, random, Case(((length, 0),), heads=(2, 2), page=length, window=300))


def test_attention_gives_the_same_bits_every_time(backend, device, random) -> None:
    """However the programs of a launch finish, what they found is joined in one order."""
    q = torch.randn(3, 8, 64, generator=random).to(device, torch.float16)
    pages = torch.randn(2, 8, 256, 2, 64, generator=random).to(device, torch.float16)
    table = torch.arange(8, dtype=torch.int32, device=device).view(1, 8)
    starts, lengths = (torch.tensor(at, dtype=torch.int32, device=device) for at in ([0, 3], [700]))
    first, *others = (backend.attention(q, *pages, table, starts, lengths, 3, 0.125, None, None) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def _check(backend, device, dtype, random, case: Case) -> None:
    lengths = [new + old for new, old in case.sequences]
    num_heads, num_kv_heads = case.heads
    keys = [torch.randn(n, num_kv_heads, case.dim, generator=random).to(dtype) for n in lengths]
    values = [torch.randn(n, num_kv_heads, case.dim, generator=random).to(dtype) for n in lengths]
    queries = [torch.randn(n, num_heads, case.dim, generator=random).to(dtype) for n, _ in case.sequences]
    k_pages, v_pages, table = paged(keys, values, case.page, random)
    scale = 1 / math.sqrt(case.dim)
    actual = backend.attention(
        torch.cat(queries).to(device),
        k_pages.to(device),
        v_pages.to(device),
        table.to(device),
        torch.tensor([0, *(n for n, _ in case.sequences)], device=device).cumsum(0, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        max(n for n, _ in case.sequences),
        scale,
        case.window,
        case.softcap,
    )
    expected = []
    for q, k, v in zip(queries, keys, values, strict=True):
        old = k.shape[0] - q.shape[0]
        for i in range(q.shape[0]):
            visible = slice(0 if case.window is None else max(0, old + i + 1 - case.window), old + i + 1)
            expected.append(one_query(q[i].double(), k[visible].double(), v[visible].double(), scale, case.softcap))
    assert actual.dtype == dtype
    assert_close(actual, torch.stack(expected), "attention")
