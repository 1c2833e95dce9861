"""Unquantized matrices and vectors of a checkpoint, cut out of the larger tensors that some models fuse them into."""

import torch
from torch import Tensor

from polybit.errors import FormatError
from polybit.format.checkpoint import FLOATS, Checkpoint
from polybit.spec import Linear, Source


def read_dense(checkpoint: Checkpoint, linear: Linear) -> tuple[Tensor, Tensor | None]:
    """weight [N, K] and bias [N] or None, both as stored (float16, bfloat16 or float32).

    Where the tensor that `linear.source` names is not there, `{linear.key}.weight` is read: a folder split already.
    FormatError: missing, of another type or shape, or a bias where the model has none or the other way round.
    """
    source = linear.source
    if source is None or f"{source.key}.weight" not in checkpoint:
        weight = read_floats(checkpoint, f"{linear.key}.weight", (linear.out_features, linear.in_features))
        return weight, _bias(checkpoint, linear, f"{linear.key}.bias", None)
    cut_outputs = source.axis == (1 if source.transposed else 0)
    bias = _bias(checkpoint, linear, f"{source.key}.bias", source if cut_outputs else None)
    return _weight(checkpoint, linear, source), bias


def read_floats(checkpoint: Checkpoint, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """An unquantized tensor as stored; None in `shape` is any size. FormatError: missing, other type or shape."""
    checkpoint.check(name, FLOATS, shape)
    return checkpoint.tensor(name)


def _weight(checkpoint: Checkpoint, linear: Linear, source: Source) -> Tensor:
    name = f"{source.key}.weight"
    checkpoint.check(name, FLOATS, (None, None))
    weight = _cut(checkpoint, name, source, source.axis)
    if source.transposed:
        weight = weight.T
    if tuple(weight.shape) != (linear.out_features, linear.in_features):
        finding = f"gives {list(weight.shape)} for {linear.key}, expected [{linear.out_features}, {linear.in_features}]"
        raise checkpoint.damaged(name, finding)
    return weight.contiguous()


def _bias(checkpoint: Checkpoint, linear: Linear, name: str, source: Source | None) -> Tensor | None:
    """All of the tensor `name`, or what `source` cuts out of it."""
    if name not in checkpoint:
        if linear.bias:
            raise FormatError(f"{name} is missing, but {linear.key} has a bias: fetch the model again")
        return None
    checkpoint.check(name, FLOATS, (None,))
    bias = checkpoint.tensor(name) if source is None else _cut(checkpoint, name, source, 0)
    if not linear.bias:
        _refuse_unless_zero(checkpoint, name, bias)
        return None
    if bias.shape != (linear.out_features,):
        finding = f"gives {bias.shape[0]} values for {linear.key}, expected {linear.out_features}"
        raise checkpoint.damaged(name, finding)
    return bias


def _refuse_unless_zero(checkpoint: Checkpoint, name: str, bias: Tensor) -> None:
    """Some exporters write all-zero biases for layers that have none; any other would be left out of the result."""
    if bias.any():
        raise checkpoint.damaged(name, "is there and not zero, but this layer has no bias")


def _cut(checkpoint: Checkpoint, name: str, source: Source, axis: int) -> Tensor:
    """The source's rows [start, stop) of each of its runs along `axis`, joined."""
    size = checkpoint.shape(name)[axis]
    run, rest = divmod(size, source.runs)
    if rest or source.stop > run:
        finding = f"has {size} entries along axis {axis}, too few or not divisible for {source.runs} x {source.stop}"
        raise checkpoint.damaged(name, finding)
    if source.stop - source.start == run:
        return checkpoint.tensor(name)
    starts = range(source.start, size, run)
    width = source.stop - source.start
    return torch.cat([checkpoint.narrow(name, axis, start, start + width) for start in starts], dim=axis)
