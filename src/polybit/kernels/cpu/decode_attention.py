"""What stands between the products of a decode step: the kernels of this backend, one after another."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.cpu.arrays import array
from polybit.kernels.cpu.attention import attention
from polybit.kernels.cpu.norms import rms_norm
from polybit.kernels.cpu.pages import write_kv
from polybit.kernels.cpu.rope import rope
from polybit.kernels.pages import Pages
from polybit.kernels.protocol import HeadNorm, Rotation

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


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
    """Quantized pages are the reference's."""
    if not (isinstance(k_pages, Tensor) and isinstance(v_pages, Tensor)):
        return reference.decode_attention(
            q, k, v, k_pages, v_pages, page_table, lengths, q_norm, k_norm, rotation, scale, window, softcap
        )
    q, k = _normed(q, q_norm), _normed(k, k_norm)
    positions, slots, starts = map(torch.from_numpy, _places(array(lengths), array(page_table), k_pages.shape[1]))
    if rotation is not None:
        q, k = rope(q, k, positions, rotation.cos, rotation.sin, rotation.interleaved)
    write_kv(k, v, k_pages, v_pages, slots)
    return attention(q, k_pages, v_pages, page_table, starts, lengths, 1, scale, window, softcap)


def _normed(heads: Tensor, norm: HeadNorm | None) -> Tensor:
    return heads if norm is None else rms_norm(heads, norm.weight, norm.eps, norm.offset)


@njit(cache=True, error_model="numpy")
def _places(lengths: Ints, page_table: Ints, page_tokens: int) -> tuple[Longs, Longs, Ints]:
    """Of each sequence's last token: its position and slot [S]; and where queries start [S + 1], one a sequence."""
    num_sequences = len(lengths)
    positions, slots = np.empty(num_sequences, np.int64), np.empty(num_sequences, np.int64)
    starts = np.empty(num_sequences + 1, np.int32)
    starts[0] = 0
    for s in range(num_sequences):
        position = np.int64(lengths[s]) - 1
        page = np.int64(page_table[s, position // page_tokens])
        positions[s], slots[s] = position, page * page_tokens + position % page_tokens
        starts[s + 1] = s + 1
    return positions, slots, starts
