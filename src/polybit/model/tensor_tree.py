"""Trees of dataclasses and tuples: the tensors in them replaced, or brought together in one run of bytes."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes; where tensors start in a run

ATOMS = (int, float, bool, str, NoneType, torch.dtype, torch.device)

T = TypeVar("T")


def map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The tree with each tensor in it replaced, in a fixed order; what cannot hold one stays the same object."""
    part: Any = value
    changed: Any = value
    if isinstance(part, Tensor):
        changed = change(part)
    elif type(part) is tuple:
        changed = tuple(map_tensors(each, change) for each in part)
    elif is_dataclass(part) and not isinstance(part, type) and not _holds_none(type(part)):
        values = {field.name: map_tensors(getattr(part, field.name), change) for field in fields(part)}
        changed = replace(part, **values)
    result: T = changed
    return result


@cache
def _holds_none(kind: Any) -> bool:
    """Whether no value of that type has a tensor in it: it is a number, a text, a tuple or dataclass of such."""
    if get_origin(kind) in (tuple, Union, UnionType):
        return all(part is Ellipsis or _holds_none(part) for part in get_args(kind))
    if is_dataclass(kind):
        return all(_holds_none(part) for part in get_type_hints(kind).values())
    return kind in ATOMS or (isinstance(kind, type) and issubclass(kind, Enum))


def num_bytes(value: object) -> int:
    """Of all tensors in a tree."""
    sizes = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    map_tensors(value, note)
    return sum(sizes)


def gather(value: T, allocate: Callable[[int], Tensor]) -> tuple[T, Tensor]:
    """The tree without memory, and its tensors copied to the [n] uint8 that `allocate` gives for a number of bytes."""
    offsets, found = _Offsets(), []

    def note(tensor: Tensor) -> Tensor:
        found.append((offsets.take(tensor), tensor))
        return tensor.to("meta")

    hollow = map_tensors(value, note)
    run = allocate(offsets.size)
    for place, tensor in found:
        run[place].copy_(tensor.contiguous().flatten().view(torch.uint8))
    return hollow, run


def over(value: T, run: Tensor) -> T:
    """The tree over the memory of `run` [>= n] uint8, laid out as `gather` does it."""
    offsets = _Offsets()
    return map_tensors(value, lambda tensor: run[offsets.take(tensor)].view(tensor.dtype).view(tensor.shape))


class _Offsets:
    """Places in a run, in the order of asking."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, tensor: Tensor) -> slice:
        start = self.size
        self.size = -(-(start + tensor.nbytes) // ALIGNMENT) * ALIGNMENT
        return slice(start, start + tensor.nbytes)
