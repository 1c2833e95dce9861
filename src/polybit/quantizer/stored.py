"""What a conversion stores beside the quantized matrices, each in fp16 with the format's own roundings (format 6.5)."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from polybit import spec
from polybit.format.checkpoint import Checkpoint
from polybit.format.dense import read_dense
from polybit.model.source import ModelSource, head_is_tied
from polybit.quantizer.probe import in_half

Tensors = dict[str, Tensor]


def embedding_tensors(checkpoint: Checkpoint, node: spec.Embedding) -> Tensors:
    """Rows as a reader that multiplies by the scale will see them again: divided by it once more, in fp16."""
    name = f"{node.key}.weight"
    rows = in_half(checkpoint.tensor(name), name)
    return {name: rows if node.scale == 1.0 else rows * node.scale / node.scale}


def norm_tensors(checkpoint: Checkpoint, node: spec.Norm | None, num_heads: int | None = None) -> Tensors:
    """`num_heads` of a head norm: its weight is stored once a head."""
    if node is None:
        return {}
    names = [f"{node.key}.weight"]
    if isinstance(node, spec.LayerNorm) and node.bias:
        names.append(f"{node.key}.bias")
    found = {name: in_half(checkpoint.tensor(name), name) for name in names}
    if isinstance(node, spec.RMSNorm) and node.offset:
        found = {name: weight + node.offset - node.offset for name, weight in found.items()}
    if num_heads is not None:
        found = {name: _by_head(weight, num_heads) for name, weight in found.items()}
    return found


def _by_head(weight: Tensor, num_heads: int) -> Tensor:
    return weight.expand(num_heads, -1).contiguous() if weight.dim() == 1 else weight


def attention_norms(checkpoint: Checkpoint, node: spec.Attention) -> Iterator[Tensors]:
    """The norms of q and k; per head where they are as wide as one, whole otherwise."""
    for norm, num_heads in ((node.q_norm, node.num_heads), (node.k_norm, node.num_kv_heads)):
        per_head = norm is not None and norm.width == node.head_dim
        yield norm_tensors(checkpoint, norm, num_heads if per_head else None)


def router_tensors(checkpoint: Checkpoint, mlp: spec.Mlp) -> Tensors:
    if not isinstance(mlp, spec.SparseMoe):
        return {}
    name = f"{mlp.router_key}.weight"
    return {name: in_half(checkpoint.tensor(name), name)}


def head_weight(source: ModelSource) -> tuple[Tensor, Tensor | None]:
    """The unquantized head, weight [V, E] fp16 and bias; the embedding's matrix where the two are tied."""
    head, checkpoint = source.spec.head, source.checkpoint
    if head_is_tied(source.spec, checkpoint):
        name, bias = f"{source.spec.embedding.key}.weight", None
        weight = checkpoint.tensor(name)
    else:
        name = f"{head.linear.key}.weight"
        weight, bias = read_dense(checkpoint, head.linear)
    if head.normalise_rows:
        weight = F.normalize(weight.float(), dim=-1)
    return in_half(weight, name), None if bias is None else in_half(bias, f"{head.linear.key}.bias")
