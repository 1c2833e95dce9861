"""Causal grouped-query attention over pages, one sequence and one run of queries at a time; lengths are read here."""

import math

import torch
from torch import Tensor

QUERY_RUN = 512  # queries whose logits are held at once


def attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    max_queries: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    out = torch.empty_like(q)
    starts = query_starts.tolist()
    for s, length in enumerate(lengths.tolist()):
        k, v = _gather(k_pages, page_table[s], length), _gather(v_pages, page_table[s], length)
        for start in range(starts[s], starts[s + 1], QUERY_RUN):
            stop = min(start + QUERY_RUN, starts[s + 1])
            seen = length - (starts[s + 1] - stop)  # keys up to the run's last query
            first = 0 if window is None else max(0, seen - (stop - start) - window + 1)
            out[start:stop] = _attend(q[start:stop], k[first:seen], v[first:seen], scale, window, softcap)
    return out


def _gather(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """The first `length` rows of a sequence: [L, Hkv, D]."""
    used = -(-length // pages.shape[1])
    return pages[table[:used]].flatten(0, 1)[:length]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The n queries are the last n of the L keys' tokens. q [n, Hq, D]; k, v [L, Hkv, D]."""
    n, num_heads, dim = q.shape
    length, num_kv_heads, _ = k.shape
    grouped = q.float().view(n, num_kv_heads, -1, dim).permute(1, 2, 0, 3)  # [Hkv, Hq / Hkv, n, D]
    keys, values = k.float().permute(1, 2, 0)[:, None], v.float().permute(1, 0, 2)[:, None]
    logits = grouped @ keys * scale  # [Hkv, Hq / Hkv, n, L]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    distance = torch.arange(length - n, length, device=q.device)[:, None] - torch.arange(length, device=q.device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    weights = logits.masked_fill_(hidden, -math.inf).softmax(-1)
    return (weights @ values).permute(2, 0, 1, 3).reshape(n, num_heads, dim).to(q.dtype)
