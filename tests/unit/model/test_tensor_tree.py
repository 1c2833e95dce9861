"""Trees of tensors brought together, and what is left of them."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from polybit.model.tensor_tree import gather, num_bytes, over


@dataclass(frozen=True, eq=False)
class Label:
    """As layouts are: equal ones are one object."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Leaf:
    weight: Tensor
    label: Label = Label((1, 2))
    name: str = "a leaf"


@dataclass(frozen=True, eq=False)
class Tree:
    leaves: tuple[Leaf, ...]
    bias: Tensor | None = None


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whoever needs the garbage collector to let memory go keeps it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tree() -> Tree:
    return Tree((Leaf(torch.arange(7.0)), Leaf(torch.ones(3, 5, dtype=torch.int16))), torch.zeros(2))


def test_a_tree_over_a_run_is_the_tree() -> None:
    given = tree()
    hollow, run = gather(given, lambda size: torch.empty(size, dtype=torch.uint8))
    found = over(hollow, run)
    assert torch.equal(found.leaves[0].weight, given.leaves[0].weight)
    assert torch.equal(found.leaves[1].weight, given.leaves[1].weight)
    assert found.leaves[1].name == "a leaf"
    assert num_bytes(found) == num_bytes(given) == 7 * 4 + 15 * 2 + 2 * 4


def test_what_holds_no_tensor_stays_the_same_object() -> None:
    given = tree()
    assert (
        over(*gather(given, lambda size: torch.empty(size, dtype=torch.uint8))).leaves[1].label is given.leaves[1].label
    )


@pytest.mark.usefixtures("no_collector")
def test_gathered_tensors_leave_memory_when_nobody_has_them() -> None:
    given = tree()
    seen = [weakref.ref(leaf.weight) for leaf in given.leaves]
    gathered = gather(given, lambda size: torch.empty(size, dtype=torch.uint8))
    del given
    assert [ref() for ref in seen] == [None, None]
    del gathered
