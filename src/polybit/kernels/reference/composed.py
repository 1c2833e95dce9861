"""Several operations one after the other, which faster backends do in one go."""

import torch
from torch import Tensor

from polybit.kernels.composed import InTurn
from polybit.kernels.pages import Pages, tensors_of
from polybit.kernels.protocol import HeadNorm, Rotation
from polybit.kernels.reference.activations import gated_activate
from polybit.kernels.reference.attention import attention
from polybit.kernels.reference.matrices import matmul
from polybit.kernels.reference.norms import rms_norm
from polybit.kernels.reference.pages import write_kv
from polybit.kernels.reference.rope import rope

_in_turn = InTurn(rms_norm, gated_activate, matmul)
norm_matmul, gated_matmul = _in_turn.norm_matmul, _in_turn.gated_matmul


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
    if q_norm is not None:
        q = rms_norm(q, q_norm.weight, q_norm.eps, q_norm.offset)
    if k_norm is not None:
        k = rms_norm(k, k_norm.weight, k_norm.eps, k_norm.offset)
    positions, page_tokens = lengths.long() - 1, tensors_of(k_pages)[0].shape[1]
    if rotation is not None:
        q, k = rope(q, k, positions, rotation.cos, rotation.sin, rotation.interleaved)
    pages = page_table.gather(1, (positions // page_tokens)[:, None]).flatten()
    write_kv(k, v, k_pages, v_pages, pages * page_tokens + positions % page_tokens)
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    return attention(q, k_pages, v_pages, page_table, starts, lengths, 1, scale, window, softcap)
