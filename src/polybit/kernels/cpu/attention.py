"""Attention over pages for sequences with few queries: a task is one query and the heads that share a key head."""

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, Ints, array
from polybit.kernels.cpu.atomic import take_next
from polybit.kernels.cpu.exponential import exponentials
from polybit.kernels.cpu.inner import inner
from polybit.kernels.cpu.quantized import Places
from polybit.kernels.cpu.rows import (
    Rows,
    Shape,
    are_served,
    locate,
    read_rows,
    rows_of,
    shape_of,
    turn_back,
    turned_for,
)
from polybit.kernels.cpu.team import Board, team, together
from polybit.kernels.pages import Pages

MAX_QUERIES = 4  # of a sequence; more are better served by products of torch
FAR = 1 << 62
AT_ONCE = 32  # keys or values


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
    if q.dtype != torch.float32 or not (are_served(k_pages) and are_served(v_pages)):
        return reference.attention(
            q, k_pages, v_pages, page_table, query_starts, lengths, max_queries, scale, window, softcap
        )
    if max_queries <= MAX_QUERIES:
        return _attend_few(q, k_pages, v_pages, page_table, query_starts, lengths, max_queries, scale, window, softcap)
    counts = query_starts.diff()
    out, are_few = torch.empty_like(q, memory_format=torch.contiguous_format), counts <= MAX_QUERIES
    for chosen, attend in ((are_few, _attend_few), (~are_few, reference.attention)):
        if not chosen.any():
            continue
        rows, starts = chosen.repeat_interleave(counts), F.pad(counts[chosen].cumsum(0, dtype=torch.int32), (1, 0))
        out[rows] = attend(
            q[rows], k_pages, v_pages, page_table[chosen], starts, lengths[chosen], max_queries, scale, window, softcap
        )
    return out


def _attend_few(
    q: Tensor, k_pages: Pages, v_pages: Pages, page_table: Tensor, query_starts: Tensor, lengths: Tensor,
    max_queries: int, scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """Of sequences with at most MAX_QUERIES each, whose results do not depend on what else is in the batch."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    tables = array(page_table), array(query_starts), array(lengths)
    span, cap = FAR if window is None else window, np.float32(softcap or 0)
    with team.turn:
        _attend(
            array(q), rows_of(k_pages), rows_of(v_pages), shape_of(k_pages), *tables, np.float32(scale), span, cap,
            *team.call(), out.numpy(),
        )  # fmt: skip
    return out


@njit(cache=True, error_model="numpy", nogil=True)
def _attend(
    q: Floats, k_rows: Rows, v_rows: Rows, shape: Shape, page_table: Ints, query_starts: Ints, lengths: Ints,
    scale: np.float32, window: int, softcap: np.float32, board: Board, workers: int, out: Floats,
) -> None:  # fmt: skip
    shared = q.shape[1] // shape[1]
    weights = np.empty((workers, shared * longest(lengths)), np.float32)
    read, taken = space_for_rows(workers, q.shape[2]), np.zeros(1, np.int64)
    pages = k_rows, v_rows, shape, page_table
    arguments = taken, q, *pages, query_starts, lengths, scale, window, softcap, weights, read, out
    together(board, workers, _attend_queries, arguments)


@inner()
def space_for_rows(workers: int, dim: int) -> tuple[Floats, Places]:
    """What each worker reads rows into, [workers, AT_ONCE, D], and where they lie, [workers, AT_ONCE]."""
    return np.empty((workers, AT_ONCE, dim), np.float32), np.empty((workers, AT_ONCE), np.int64)


@inner()
def longest(lengths: Ints) -> np.int32:
    most = np.int32(0)
    for length in lengths:
        most = max(most, length)
    return most


@inner()
def _attend_queries(
    worker: int, taken: NDArray[np.int64], q: Floats, k_rows: Rows, v_rows: Rows, shape: Shape, page_table: Ints,
    query_starts: Ints, lengths: Ints, scale: np.float32, window: int, softcap: np.float32, weights: Floats,
    read: tuple[Floats, Places], out: Floats,
) -> None:  # fmt: skip
    num_kv_heads, rows, places = shape[1], read[0][worker], read[1][worker]
    shared = q.shape[1] // num_kv_heads
    task = take_next(taken, 0)
    while task < q.shape[0] * num_kv_heads:
        t, head = task // num_kv_heads, task % num_kv_heads
        s = 0
        while query_starts[s + 1] <= t:
            s += 1
        seen = lengths[s] - (query_starts[s + 1] - 1 - t)
        first = max(0, seen - window)
        heads = slice(head * shared, (head + 1) * shared)
        space = weights[worker, : shared * (seen - first)].reshape(shared, seen - first)
        attend_heads(
            q[t, heads], k_rows, v_rows, shape, page_table[s], head, first, scale, softcap, space, rows, places,
            out[t, heads],
        )  # fmt: skip
        task = take_next(taken, 0)


@inner(fastmath={"reassoc", "contract"})
def attend_heads(
    q: Floats, k_rows: Rows, v_rows: Rows, shape: Shape, table: Ints, head: int, first: int, scale: np.float32,
    softcap: np.float32, weights: Floats, space: Floats, places: Places, out: Floats,
) -> None:  # fmt: skip
    """q [heads, D]: of one query, those that share a key head; over keys from `first` on.

    weights [heads, keys], space [AT_ONCE, D] and places [AT_ONCE] are this worker's to work in.
    """
    (shared, num_keys), dim = weights.shape, q.shape[1]
    queries = turned_for(k_rows, q, out)
    for start in range(0, num_keys, AT_ONCE):
        count = min(AT_ONCE, num_keys - start)
        locate(table, shape, head, first + start, places[:count])
        keys = read_rows(k_rows, places[:count], space)
        for i in range(count):
            row = places[i]
            for h in range(shared):
                total = np.float32(0)
                for d in range(dim):
                    total += queries[h, d] * keys[row, d]
                weights[h, start + i] = total * scale
    for h in range(shared):
        _softmax(weights[h], softcap)
        for d in range(dim):
            out[h, d] = 0
    for start in range(0, num_keys, AT_ONCE):
        count = min(AT_ONCE, num_keys - start)
        locate(table, shape, head, first + start, places[:count])
        values = read_rows(v_rows, places[:count], space)
        for i in range(count):
            row = places[i]
            for h in range(shared):
                weight = weights[h, start + i]
                for d in range(dim):
                    out[h, d] += weight * values[row, d]
    turn_back(v_rows, out)


@inner()
def _softmax(logits: Floats, softcap: np.float32) -> None:
    """In place, after softcap * tanh(logits / softcap) where there is a cap."""
    if softcap > 0:
        for i in range(len(logits)):
            logits[i] = softcap * np.tanh(logits[i] / softcap)
    largest = logits[0]
    for i in range(1, len(logits)):
        largest = max(largest, logits[i])
    for i in range(len(logits)):
        logits[i] -= largest
    exponentials(logits)
    total = np.float32(0)
    for i in range(len(logits)):
        total += logits[i]
    inverse = np.float32(1) / total
    for i in range(len(logits)):
        logits[i] *= inverse
