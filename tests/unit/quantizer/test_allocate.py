import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polybit.errors import JobError
from polybit.quantizer import allocate as module
from polybit.quantizer.allocate import Choice, allocate

CHOICE = st.builds(Choice, cost=st.integers(1, 10**6), loss=st.floats(0, 1))
SLOTS = st.lists(st.lists(CHOICE, min_size=1, max_size=5), min_size=1, max_size=5)


def total(slots: list[list[Choice]], chosen: list[int]) -> tuple[int, float]:
    picked = [slot[i] for slot, i in zip(slots, chosen, strict=True)]
    return sum(choice.cost for choice in picked), sum(choice.loss for choice in picked)


def reach(slots: list[list[Choice]]) -> tuple[int, int]:
    return sum(min(c.cost for c in slot) for slot in slots), sum(max(c.cost for c in slot) for slot in slots)


def best(slots: list[list[Choice]], budget: int) -> float:
    answers = (total(slots, list(chosen)) for chosen in itertools.product(*(range(len(slot)) for slot in slots)))
    return min(loss for cost, loss in answers if cost <= budget)


@settings(max_examples=30, deadline=None)
@given(SLOTS, st.floats(0, 1))
def test_never_above_the_budget_and_near_the_best(slots: list[list[Choice]], share: float) -> None:
    lowest, highest = reach(slots)
    budget = lowest + int(share * (highest - lowest))
    cost, loss = total(slots, allocate(slots, budget, 1))
    assert cost <= budget
    assert loss >= best(slots, budget) - 1e-9
    slack = len(slots) * -(-highest // module.GRID)
    if budget - slack >= lowest:
        assert loss <= best(slots, budget - slack) + 1e-9


@settings(max_examples=30, deadline=None)
@given(SLOTS, st.floats(0, 1), st.floats(0, 1))
def test_improves_with_the_budget(slots: list[list[Choice]], a: float, b: float) -> None:
    lowest, highest = reach(slots)
    small, large = sorted(lowest + int(share * (highest - lowest)) for share in (a, b))
    if small + len(slots) * -(-highest // module.GRID) <= large:
        assert total(slots, allocate(slots, large, 1))[1] <= total(slots, allocate(slots, small, 1))[1] + 1e-9


@settings(max_examples=30, deadline=None)
@given(SLOTS, st.floats(0, 1))
def test_nothing_that_helps_still_fits(slots: list[list[Choice]], share: float) -> None:
    lowest, highest = reach(slots)
    budget = lowest + int(share * (highest - lowest))
    chosen = allocate(slots, budget, 1)
    left = budget - total(slots, chosen)[0]
    for slot, i in zip(slots, chosen, strict=True):
        assert not any(c.loss < slot[i].loss and c.cost - slot[i].cost <= left for c in slot)


@pytest.mark.parametrize(("bits", "nearest"), [(2.09, 2.1), (8.06, 8.05)])
def test_out_of_reach_says_what_can_be_reached(bits: float, nearest: float) -> None:
    slots = [[Choice(2100, 0.5), Choice(8050, 0.1)]]
    with pytest.raises(
        JobError, match=rf"^{bits:g} bits per weight .* span 2\.1 to 8\.05 bits .* ask for {nearest:g},"
    ):
        allocate(slots, bits, 1000)
    assert allocate(slots, nearest, 1000) == [int(nearest > 5)]


def test_any_number_of_options_a_slot_is_told_apart() -> None:
    slots = [[Choice(1000 + i, (300 - i) ** 2) for i in range(300)]] * 2
    assert allocate(slots, 2 * 1290, 1) == [290, 290]


def test_a_real_shape_comes_within_a_five_thousandth_of_its_budget() -> None:
    costs = [2.14, 2.2, 2.3, 2.7, 3.2, 4.04, 4.05, 4.14, 4.3, 5.3, 6.0, 8.0]
    slots = [[Choice(int(bits * (1 + s % 2) * 10**6), 4.0**-bits * (s + 1)) for bits in costs] for s in range(60)]
    num_weights = 90 * 10**6
    for bits in (2.5, 3.0, 4.0, 6.0):
        cost, _ = total(slots, allocate(slots, bits, num_weights))
        assert bits * 0.9998 <= cost / num_weights <= bits
