"""Attention of decode steps over pages: a task is one query and the heads that share a key head."""

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, array, is_plain
from polybit.kernels.cpu.exponential import exponentials
from polybit.kernels.cpu.threads import follow_torch
from polybit.kernels.pages import Pages

MAX_QUERIES = 4  # of a sequence; more are better served by products of torch
FAR = 1 << 62

Ints = NDArray[np.int32]


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
    if max_queries > MAX_QUERIES or q.dtype != torch.float32 or not (is_plain(k_pages) and is_plain(v_pages)):
        return reference.attention(
            q, k_pages, v_pages, page_table, query_starts, lengths, max_queries, scale, window, softcap
        )
    follow_torch()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend(
        array(q), array(k_pages), array(v_pages), array(page_table), array(query_starts), array(lengths),
        np.float32(scale), FAR if window is None else window, np.float32(softcap or 0), out.numpy(),
    )  # fmt: skip
    return out


@njit(parallel=True, cache=True, error_model="numpy")
def _attend(
    q: Floats, k_pages: Floats, v_pages: Floats, page_table: Ints, query_starts: Ints, lengths: Ints,
    scale: np.float32, window: int, softcap: np.float32, out: Floats,
) -> None:  # fmt: skip
    num_kv_heads = k_pages.shape[2]
    shared = q.shape[1] // num_kv_heads
    for task in prange(q.shape[0] * num_kv_heads):
        t, head = task // num_kv_heads, task % num_kv_heads
        s = np.searchsorted(query_starts, t, side="right") - 1
        seen = lengths[s] - (query_starts[s + 1] - 1 - t)
        first = max(0, seen - window)
        heads = slice(head * shared, (head + 1) * shared)
        _attend_head(q[t, heads], k_pages, v_pages, page_table[s], head, first, seen, scale, softcap, out[t, heads])


@njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _attend_head(
    q: Floats, k_pages: Floats, v_pages: Floats, table: Ints, head: int, first: int, seen: int, scale: np.float32,
    softcap: np.float32, out: Floats,
) -> None:  # fmt: skip
    """q [shared heads, D] over keys [first, seen) of one key head -> out [shared heads, D]"""
    num_tokens = k_pages.shape[1]
    weights = np.empty((q.shape[0], seen - first), np.float32)
    for i in range(first, seen):
        k = k_pages[table[i // num_tokens], i % num_tokens, head]
        for h in range(q.shape[0]):
            total = np.float32(0)
            for d in range(q.shape[1]):
                total += q[h, d] * k[d]
            weights[h, i - first] = total * scale
    for h in range(q.shape[0]):
        _softmax(weights[h], softcap)
    out[:] = 0
    for i in range(first, seen):
        v = v_pages[table[i // num_tokens], i % num_tokens, head]
        for h in range(q.shape[0]):
            weight = weights[h, i - first]
            for d in range(q.shape[1]):
                out[h, d] += weight * v[d]


@njit(cache=True, error_model="numpy")
def _softmax(logits: Floats, softcap: np.float32) -> None:
    """In place, after softcap * tanh(logits / softcap) where there is a cap."""
    if softcap > 0:
        for i in range(len(logits)):
            logits[i] = softcap * np.tanh(logits[i] / softcap)
    largest = logits.max()
    for i in range(len(logits)):
        logits[i] -= largest
    exponentials(logits)
    logits *= np.float32(1) / logits.sum()
