"""Paged attention against a loop over single queries in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from closeness import assert_close
from polybit.kernels.registry import BACKENDS

PAGE = 4


def _one_query(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
    """q [Hq, D]; k, v [n, Hkv, D], all of them visible."""
    group = q.shape[0] // k.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[0]):
        logits = k[:, head // group] @ q[head] * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = (logits - logits.max()).exp()
        out[head] = (weights / weights.sum()) @ v[:, head // group]
    return out


@given(
    sequences=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    dim=st.sampled_from([8, 20]),
    window=st.sampled_from([None, 1, 5]),
    softcap=st.sampled_from([None, 2.0]),
    name=st.sampled_from(sorted(BACKENDS)),
)
def test_attention(sequences, heads, dim, window, softcap, name) -> None:
    """Sequences of n new tokens after m old ones; pages in random order, unused rows poisoned."""
    num_heads, num_kv_heads = heads
    random = torch.Generator().manual_seed(sum(n + 31 * m for n, m in sequences))
    lengths = [n + m for n, m in sequences]
    keys = [torch.randn(length, num_kv_heads, dim, generator=random) for length in lengths]
    values = [torch.randn(length, num_kv_heads, dim, generator=random) for length in lengths]
    queries = [torch.randn(n, num_heads, dim, generator=random) for n, _ in sequences]
    k_pages, v_pages, table = _page(keys, values, random)
    actual = BACKENDS[name].attention(
        torch.cat(queries),
        k_pages,
        v_pages,
        table,
        torch.tensor([0, *[n for n, _ in sequences]]).cumsum(0),
        torch.tensor(lengths),
        1 / math.sqrt(dim),
        window,
        softcap,
    )
    expected = []
    for q, k, v, (_, old) in zip(queries, keys, values, sequences, strict=True):
        for i in range(q.shape[0]):
            visible = slice(0 if window is None else max(0, old + i + 1 - window), old + i + 1)
            expected.append(
                _one_query(q[i].double(), k[visible].double(), v[visible].double(), 1 / math.sqrt(dim), softcap)
            )
    assert_close(actual, torch.stack(expected), "attention")


def _page(keys: list[Tensor], values: list[Tensor], random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Scatter sequences over shuffled pages; what no token fills stays NaN."""
    counts = [-(-k.shape[0] // PAGE) for k in keys]
    order = torch.randperm(sum(counts), generator=random)
    k_pages = torch.full((sum(counts), PAGE, *keys[0].shape[1:]), math.nan)
    v_pages = k_pages.clone()
    table = torch.zeros(len(keys), max(counts), dtype=torch.int64)
    taken = 0
    for s, (k, v, count) in enumerate(zip(keys, values, counts, strict=True)):
        table[s, :count] = order[taken : taken + count]
        for row in range(k.shape[0]):
            k_pages[table[s, row // PAGE], row % PAGE] = k[row]
            v_pages[table[s, row // PAGE], row % PAGE] = v[row]
        taken += count
    return k_pages, v_pages, table


@pytest.mark.parametrize("length", [511, 1100])
def test_long_prompts_in_runs(backend, device, random, length) -> None:
    """More queries than are held at once, with a window that starts inside a run."""
    q, k, v = (torch.randn(length, 2, 16, generator=random).to(device) for _ in range(3))
    out = backend.attention(
        q,
        k[None],
        v[None],
        torch.zeros(1, 1, dtype=torch.int64, device=device),
        torch.tensor([0, length]),
        torch.tensor([length]),
        0.25,
        300,
        None,
    )
    for i in (0, 299, 300, length - 1):
        seen = slice(max(0, i - 299), i + 1)
        assert_close(out[i], _one_query(q[i].double(), k[seen].double(), v[seen].double(), 0.25, None), "attention")
