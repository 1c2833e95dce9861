"""Which option each part of a model gets, so that the whole stays within its bits and loses least.

A multiple-choice knapsack: one option a slot (an attention, an MLP), the sum of costs at most the budget, the sum of
losses least. Solved by dynamic programming over costs rounded up to a fine grid; the rounding's slack is then spent
greedily. Deterministic, and provably no worse than the best answer for a budget smaller by one grid unit a slot.

The loss of an option is the square of its measured relative error. Each part adds its own error to the residual stream;
independent errors add in squares, and the divergence of the final distribution grows with the square of a small error.
Squares also keep single parts from being sacrificed, which sums of plain errors do at low bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polybit.errors import JobError

GRID = 1 << 17  # cells between nothing and the most expensive answer


@dataclass(frozen=True)
class Choice:
    """One option of one slot."""

    cost: int  # bits
    loss: float


def allocate(slots: Sequence[Sequence[Choice]], bits: float, num_weights: int) -> list[int]:
    """The index of each slot's option; the total cost is at most int(num_weights * bits). Raises as budget_of."""
    budget = budget_of(slots, bits, num_weights)
    unit = -(-sum(max(choice.cost for choice in slot) for slot in slots) // GRID)
    return _fill(slots, _best_on_grid(slots, unit, budget // unit), budget)


def budget_of(slots: Sequence[Sequence[Choice]], bits: float, num_weights: int) -> int:
    """Bits in all. JobError where no combination, or every one, costs less than that; it names the nearest bits."""
    budget = int(num_weights * bits)
    lowest, highest = (sum(pick(choice.cost for choice in slot) for slot in slots) for pick in (min, max))
    if not lowest <= budget <= highest:
        least, most = -(-lowest * 1000 // num_weights) / 1000, highest * 1000 // num_weights / 1000
        raise JobError(
            f"{bits:g} bits per weight cannot be reached: the options span {least} to {most} bits per weight for this "
            f"model; ask for {least if budget < lowest else most}, the nearest, or for a number in between"
        )
    return budget


def _best_on_grid(slots: Sequence[Sequence[Choice]], unit: int, cells: int) -> list[int]:
    """The least loss with every cost rounded up to whole units."""
    best = np.zeros(cells + 1)  # least loss of the slots so far within each number of units
    picks, numbers = list[NDArray[np.unsignedinteger[Any]]](), np.min_scalar_type(max(map(len, slots)))
    for slot in slots:
        totals = np.full((len(slot), cells + 1), np.inf)
        for row, choice in zip(totals, slot, strict=True):
            units = min(-(-choice.cost // unit), cells + 1)
            row[units:] = best[: cells + 1 - units] + choice.loss
        picks.append(totals.argmin(0).astype(numbers))
        best = totals.min(0)
    if not np.isfinite(best[-1]):  # the budget is so tight that rounding up leaves nothing
        return [min(range(len(slot)), key=lambda i: slot[i].cost) for slot in slots]
    return _trace(slots, picks, unit, cells)


def _trace(
    slots: Sequence[Sequence[Choice]], picks: Sequence[NDArray[np.unsignedinteger[Any]]], unit: int, cells: int
) -> list[int]:
    chosen = list[int]()
    for slot, pick in zip(reversed(slots), reversed(picks), strict=True):
        chosen.append(int(pick[cells]))
        cells -= -(-slot[chosen[-1]].cost // unit)
    return chosen[::-1]


def _fill(slots: Sequence[Sequence[Choice]], chosen: list[int], budget: int) -> list[int]:
    """Spend what is left on the change that helps most, until no change that helps fits."""
    left = budget - sum(slot[i].cost for slot, i in zip(slots, chosen, strict=True))
    while True:
        gain, s, i = max(
            (slot[chosen[s]].loss - choice.loss, s, i)
            for s, slot in enumerate(slots)
            for i, choice in enumerate(slot)
            if choice.cost - slot[chosen[s]].cost <= left
        )
        if gain <= 0:
            return chosen
        left -= slots[s][i].cost - slots[s][chosen[s]].cost
        chosen[s] = i
