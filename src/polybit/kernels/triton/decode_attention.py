"""Attention of one new token for each sequence, from the product's columns to mixed values in one launch.

A program takes the heads that share a key head, norms and turns them in registers, and goes through chunks of the
sequence's keys, the next one on its way while it works on one (online softmax, arXiv 2205.14135). Of quantized pages
each warp works on keys of its own, as decode_quantized.py says. Chunks are dealt out among programs. The last of them
also stores the new key and value, which nobody reads back from their page; whoever finishes last joins what all have
found, in a fixed order. Logits are kept in units of log2.

Where cards can, it starts while the launch before it still works, and reads the first of the older keys and values.
"""

import functools
import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from polybit.kernels.pages import FULL, GROUP, Pages
from polybit.kernels.protocol import HeadNorm, Rotation
from polybit.kernels.triton.decode_kernel import attend_new_tokens
from polybit.kernels.triton.pages import arguments_of
from polybit.kernels.triton.reduction import MAX_SUMS, can_overlap, counters, num_processors
from polybit.kernels.triton.rope import dense_heads

MAX_PARTS = 64
JOINED_ELEMENTS = 16384  # of parts on their way at a time


@dataclass(frozen=True)
class Tiles:
    """keys: taken in at a time."""

    keys: int
    warps: int


QUANTIZED_TILES = Tiles(keys=128, warps=8)  # as many keys a warp as a tensor core takes in of values


@functools.cache
def choose_tiles(rows: int, block_d: int, dtype: torch.dtype) -> Tiles:
    """So that two chunks fit the registers, beside what `rows` heads need."""
    is_wide = rows > 16 or dtype.itemsize > 2
    chunk_bytes = 16 << 10 if is_wide else 32 << 10
    keys = max(16, min(128, chunk_bytes // (block_d * dtype.itemsize)))
    return Tiles(keys, warps=8 if is_wide or keys * block_d > 8192 else 4)


def fits_warps(rows: int, block_d: int, dtype: torch.dtype) -> bool:
    """Whether a warp's registers hold sums of its own, beside the queries that it multiplies by tensor cores."""
    return rows == 16 and block_d <= 128 and dtype.itemsize == 2


def max_parts(num_pairs: int, processors: int) -> int:
    """Programs that a key head's chunks are dealt out to, so that every processor has one."""
    return 1 if num_pairs > MAX_SUMS else max(1, min(MAX_PARTS, processors // num_pairs))


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
    """The type of pages that are not quantized is q's."""
    q, k, v = dense_heads(q), dense_heads(k), dense_heads(v)
    device, (sequences, num_heads, head_dim) = q.device, q.shape
    keys, values = arguments_of(k_pages), arguments_of(v_pages)
    page_tokens, num_kv_heads = keys.page_tokens, keys.num_kv_heads
    group, pairs = num_heads // num_kv_heads, sequences * num_kv_heads
    block_d, block_g = max(16, triton.next_power_of_2(head_dim)), triton.next_power_of_2(group)
    rows = max(16, block_g)
    tiles = choose_tiles(rows, block_d, q.dtype)
    by_warp = max(keys.bits, values.bits) < FULL.k and fits_warps(rows, block_d, q.dtype)
    if by_warp:
        tiles = QUANTIZED_TILES
    num_parts = max_parts(pairs, num_processors(device))
    part_rows = pairs * num_parts * group if num_parts > 1 else 0
    overlap = can_overlap(device)
    out = torch.empty(q.shape, dtype=q.dtype, device=device)
    attend_new_tokens[pairs, num_parts](
        q,
        k,
        v,
        keys.rows,
        values.rows,
        keys.scales,
        values.scales,
        page_table,
        lengths,
        None if q_norm is None else q_norm.weight,
        None if k_norm is None else k_norm.weight,
        None if rotation is None else rotation.cos,
        None if rotation is None else rotation.sin,
        out,
        torch.empty(part_rows * block_d, dtype=torch.float32, device=device),
        torch.empty(part_rows * 2, dtype=torch.float32, device=device),
        counters(device),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        page_table.stride(0),
        page_table.shape[1],
        num_parts,
        0.0 if q_norm is None else q_norm.eps,
        0.0 if q_norm is None else q_norm.offset,
        0.0 if k_norm is None else k_norm.eps,
        0.0 if k_norm is None else k_norm.offset,
        scale,
        window,
        softcap,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        HALF=0 if rotation is None else rotation.cos.shape[1],
        INTERLEAVED=rotation is not None and rotation.interleaved,
        BLOCK_M=rows,
        BLOCK_N=tiles.keys,
        BLOCK_D=block_d,
        BLOCK_G=block_g,
        AT_ONCE=min(MAX_PARTS, max(1, JOINED_ELEMENTS // (block_g * block_d))),
        PAGE_TOKENS=page_tokens,
        K_BITS=keys.bits,
        V_BITS=values.bits,
        SPAN=math.gcd(head_dim, GROUP),
        WARPS=tiles.warps if by_warp else 0,
        OVERLAP=overlap,
        num_warps=tiles.warps,
        num_stages=1,
        **({"launch_pdl": True} if overlap else {}),
    )
    return out
