"""Which bits each matrix of a synthetic model gets: the converter's options and allocator, with an assumed loss."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache

from polybit import spec
from polybit.errors import ConfigError
from polybit.format.exl2 import Layout, storage_bits
from polybit.quantizer.allocate import Choice, allocate
from polybit.quantizer.candidates import HEAD_SETS, ParameterSet
from polybit.quantizer.slots import Slot, slots_of


@dataclass(frozen=True)
class Recipe:
    """The parameter set of every matrix by its key, that of the head included."""

    sets: Mapping[str, ParameterSet]

    def layout(self, linear: spec.Linear) -> Layout:
        return _layout(self.sets[linear.key], linear.in_features)

    def stored_bits(self, linear: spec.Linear) -> int:
        return storage_bits(self.layout(linear), linear.padded_out_features, linear.bias)


def choose_recipe(model: spec.Model, bits: float, head_bits: int) -> Recipe:
    """At most `bits` a weight over the decoder's matrices, and as near as the options allow.

    ConfigError: no such head. JobError: more or fewer bits than the options span.
    """
    if head_bits not in HEAD_SETS:
        raise ConfigError(f"a head of {head_bits} bits does not exist; choose one of: {', '.join(map(str, HEAD_SETS))}")
    slots = [slot for block in model.blocks for slot in slots_of(block)]
    num_weights = sum(linear.in_features * linear.out_features for linear in model.linears)
    picked = allocate(_choices(slots), bits, num_weights)
    sets = {model.head.linear.key: HEAD_SETS[head_bits]}
    for slot, index in zip(slots, picked, strict=True):
        sets |= {linear.key: slot.options[index][role] for role, linear in slot.linears}
    return Recipe(sets)


def _choices(slots: list[Slot]) -> list[list[Choice]]:
    """One bit more halves the error, as rounding does to smooth weights; slots of one shape are counted once."""
    known: dict[Hashable, list[Choice]] = {}
    for slot in slots:
        if _shape(slot) not in known:
            costs = [slot.num_bits(option) for option in slot.options]
            known[_shape(slot)] = [Choice(cost, 4.0 ** -(cost / slot.num_weights)) for cost in costs]
    return [known[_shape(slot)] for slot in slots]


def _shape(slot: Slot) -> Hashable:
    return tuple((role, node.in_features, node.padded_out_features, node.bias) for role, node in slot.linears)


@cache
def _layout(chosen: ParameterSet, in_features: int) -> Layout:
    return chosen.layout(in_features)
