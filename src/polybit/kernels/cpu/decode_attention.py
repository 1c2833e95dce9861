"""What stands between the products of a decode step, in one kernel: a task is a key head of a sequence."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import Floats, Ints, array
from polybit.kernels.cpu.atomic import take_next
from polybit.kernels.cpu.attention import FAR, attend_heads, longest, space_for_rows
from polybit.kernels.cpu.inner import inner
from polybit.kernels.cpu.norms import norm_row
from polybit.kernels.cpu.quantized import Places
from polybit.kernels.cpu.rope import rotate_head
from polybit.kernels.cpu.rows import Rows, Shape, are_served, copy, rows_of, shape_of, store_row
from polybit.kernels.cpu.team import Board, team, together
from polybit.kernels.pages import Pages
from polybit.kernels.protocol import HeadNorm, Rotation

NO_NORM = np.empty(0, np.float32), 0.0, 0.0
NO_ROTATION = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32), False

Norm = tuple[Floats, float, float]  # weight [D], or of no features: none; eps; offset
Turn = tuple[Floats, Floats, bool]  # cos and sin, of no features: none; interleaved


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Pages,
    v_pages: Pages,
    page_table: Tensor,
    lengths: Tensor,
    q_norm: HeadNorm | None,
    k_norm: HeadNorm | None,
    rotation: Rotation | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Pages of 16 bits are the reference's."""
    if q.dtype != torch.float32 or not (are_served(k_pages) and are_served(v_pages)):
        return reference.decode_attention(
            q, k, v, k_pages, v_pages, page_table, lengths, q_norm, k_norm, rotation, scale, window, softcap
        )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    given = (
        array(q),
        array(k),
        array(v),
        rows_of(k_pages),
        rows_of(v_pages),
        shape_of(k_pages),
        array(page_table),
        array(lengths),
    )
    turn = NO_ROTATION if rotation is None else (array(rotation.cos), array(rotation.sin), rotation.interleaved)
    seen = np.float32(scale), FAR if window is None else window, np.float32(softcap or 0)
    with team.turn:
        _attend(*given, _norm(q_norm), _norm(k_norm), turn, *seen, *team.call(), out.numpy())
    return out


def _norm(norm: HeadNorm | None) -> Norm:
    return NO_NORM if norm is None else (array(norm.weight), norm.eps, norm.offset)


@njit(cache=True, error_model="numpy", nogil=True)
def _attend(
    q: Floats, k: Floats, v: Floats, k_rows: Rows, v_rows: Rows, shape: Shape, page_table: Ints, lengths: Ints,
    q_norm: Norm, k_norm: Norm, turn: Turn, scale: np.float32, window: int, softcap: np.float32, board: Board,
    workers: int, out: Floats,
) -> None:  # fmt: skip
    weights = np.empty((workers, q.shape[1] // k.shape[1] * longest(lengths)), np.float32)
    read, taken = space_for_rows(workers, q.shape[2]), np.zeros(1, np.int64)
    pages = k_rows, v_rows, shape, page_table, lengths
    together(
        board, workers, _attend_heads,
        (taken, q, k, v, *pages, q_norm, k_norm, turn, scale, window, softcap, weights, read, np.empty_like(q), out),
    )  # fmt: skip


@inner()
def _attend_heads(
    worker: int, taken: NDArray[np.int64], q: Floats, k: Floats, v: Floats, k_rows: Rows, v_rows: Rows, shape: Shape,
    page_table: Ints, lengths: Ints, q_norm: Norm, k_norm: Norm, turn: Turn, scale: np.float32, window: int,
    softcap: np.float32, weights: Floats, read: tuple[Floats, Places], turned: Floats, out: Floats,
) -> None:  # fmt: skip
    """turned [S, Hq, D]: space for keys, then queries, normed and rotated; weights [workers, ...]: for products."""
    (page_tokens, num_kv_heads), rows, places = shape, read[0][worker], read[1][worker]
    shared = q.shape[1] // num_kv_heads
    task = take_next(taken, 0)
    while task < k.shape[0] * num_kv_heads:
        s, head = task // num_kv_heads, task % num_kv_heads
        position = int(lengths[s]) - 1
        token = page_table[s, position // page_tokens] * page_tokens + position % page_tokens
        key = turned[s, head * shared]
        _turn(k[s, head], k_norm, turn, position, key)
        store_row(k_rows, token * num_kv_heads + head, key, rows[0])
        store_row(v_rows, token * num_kv_heads + head, v[s, head], rows[0])
        heads = slice(head * shared, (head + 1) * shared)
        for h in range(head * shared, (head + 1) * shared):
            _turn(q[s, h], q_norm, turn, position, turned[s, h])
        first = max(0, position + 1 - window)
        num_keys = position + 1 - first
        space = weights[worker, : shared * num_keys].reshape(shared, num_keys)
        attend_heads(
            turned[s, heads], k_rows, v_rows, shape, page_table[s], head, first, scale, softcap, space, rows, places,
            out[s, heads],
        )  # fmt: skip
        task = take_next(taken, 0)


@inner()
def _turn(x: Floats, norm: Norm, turn: Turn, position: int, out: Floats) -> None:
    """One head [D], normed and rotated."""
    weight, eps, offset = norm
    if len(weight):
        norm_row(x, weight, eps, offset, out)
    else:
        copy(x, out)
    cos, sin, interleaved = turn
    if cos.shape[1]:
        rotate_head(out, cos[position], sin[position], interleaved, out)
