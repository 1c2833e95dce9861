"""Causal grouped-query attention over pages, sequences of equal lengths together; lengths are read here."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from polybit.kernels.pages import Pages, QuantizedPages
from polybit.kernels.reference.quantized import dequantize, turn

QUERY_RUN = 256  # queries whose logits are held at once: few enough for caches, and to skip most keys they do not see
KEY_RUN = 8192  # keys of sequences that are taken together, which bounds their copies


def attention(
    q: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    max_queries: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    if isinstance(k_pages, QuantizedPages):
        q = turn(q, k_pages.group).to(q.dtype)
    starts, seen = query_starts.tolist(), lengths.tolist()
    found = list[Tensor]()
    for first, stop in _alike(starts, seen):
        num_queries, length, tables = starts[first + 1] - starts[first], seen[first], page_table[first:stop]
        queries = q[starts[first] : starts[stop]].view(stop - first, num_queries, *q.shape[1:])
        k, v = _gather(k_pages, tables, length), _gather(v_pages, tables, length)
        found.append(_attend(queries, k, v, scale, window, softcap).flatten(0, 1))
    mixed = torch.cat(found)
    return turn(mixed, v_pages.group).to(q.dtype) if isinstance(v_pages, QuantizedPages) else mixed


def _alike(starts: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring sequences with as many queries and tokens each: the first, and the one after the last."""
    shapes = [(starts[s + 1] - starts[s], length) for s, length in enumerate(lengths)]
    for (num_queries, length), members in groupby(range(len(lengths)), shapes.__getitem__):
        same, at_once = list(members), max(1, min(QUERY_RUN, KEY_RUN // max(length, 1)))
        for first in range(same[0], same[-1] + 1, at_once) if num_queries else ():
            yield first, min(first + at_once, same[-1] + 1)


def _gather(pages: Pages, tables: Tensor, length: int) -> Tensor:
    """The first `length` rows of s sequences: [s, L, Hkv, D]; quantized ones stay turned."""
    if isinstance(pages, QuantizedPages):
        codes, scales = _gather(pages.codes, tables, length), _gather(pages.scales, tables, length)
        return dequantize(codes, scales, pages.bits)
    used = -(-length // pages.shape[1])
    return pages[:, : min(length, pages.shape[1])][tables[:, :used]].flatten(1, 2)[:, :length]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The n queries of each sequence are the last n of its L tokens. q [s, n, Hq, D]; k, v [s, L, Hkv, D] -> as q."""
    num_sequences, n, _, dim = q.shape
    length, num_kv_heads = k.shape[1:3]
    grouped = (q.float() * scale).view(num_sequences, n, num_kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
    keys, values = (x.float().transpose(1, 2).contiguous() for x in (k, v))  # [s, Hkv, L, D]
    run, mixed = max(1, QUERY_RUN // num_sequences), list[Tensor]()
    for start in range(0, n, run):
        stop = min(start + run, n)
        shown = slice(0 if window is None else max(0, length - n + start - window + 1), length - n + stop)
        queries = grouped[:, :, :, start:stop]  # [s, Hkv, Hq / Hkv, r, D]
        logits = (queries.flatten(2, 3) @ keys[:, :, shown].mT).unflatten(2, queries.shape[2:4])
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if stop - start > 1:
            logits = logits.masked_fill_(_hidden(stop - start, logits.shape[-1], window, q.device), -math.inf)
        weights = logits.softmax(-1).flatten(2, 3)
        mixed.append((weights @ values[:, :, shown]).view_as(queries))
    return torch.cat(mixed, 3).permute(0, 3, 1, 2, 4).reshape(q.shape).to(q.dtype)


def _hidden(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """[r, L]: the keys that each query must not look at; the queries are those of the last r keys' tokens."""
    keys = torch.arange(num_keys, device=device)
    distance = keys[num_keys - num_queries :, None] - keys
    return distance < 0 if window is None else (distance < 0) | (distance >= window)
