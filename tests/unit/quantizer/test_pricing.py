"""Options from prices: the best widths for a price, layouts that hold just these, and bits that buy something."""

import functools
import itertools
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polybit import arch
from polybit.format.exl2 import storage_bits
from polybit.quantizer import pricing
from polybit.quantizer.pricing import GROUP_SIZES, WIDTHS, extremes, options_of
from polybit.quantizer.slots import Slot, slots_of
from random_model import TINY_LLAMA


def slot(index: int = 1) -> Slot:
    return slots_of(arch.read_model(TINY_LLAMA, where="test").blocks[0])[index]


def tables(of: Slot, seed: int = 0) -> dict[str, pricing.Table]:
    """Costs that fall by four a bit, of blocks that matter less and less."""
    make = np.random.default_rng(seed)
    return {
        linear.key: 4.0 ** -np.array(WIDTHS)[:, None] * np.sort(make.lognormal(0, 2, linear.in_features // 32))[::-1]
        for _, linear in of.linears
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(-30, 0))
def test_the_widths_for_a_price_are_the_best_there_are(seed: int, log_price: float) -> None:
    table = np.random.default_rng(seed).lognormal(-3, 2, (len(WIDTHS), 3))
    bits, price = np.array([32.0 * b for b in WIDTHS]), 2.0**log_price
    found, _ = pricing._cheapest(table, bits, np.array([price, price / 2]))

    def total(widths: tuple[int, ...]) -> float:
        return sum(table[w, block] + price * bits[w] for block, w in enumerate(widths))

    falling = (w for w in itertools.product(range(len(WIDTHS)), repeat=3) if list(w) == sorted(w))
    assert total(tuple(found)) == pytest.approx(min(map(total, falling)))
    assert sorted(found) == list(found)


@given(st.lists(st.integers(0, len(WIDTHS) - 1), min_size=1, max_size=400))
def test_a_layout_holds_just_the_blocks_it_was_made_of(widths: list[int]) -> None:
    wanted = [WIDTHS[w] for w in sorted(widths)]
    chosen = pricing._parameter_set(np.array(sorted(widths)))
    for order in (chosen.shares, chosen.shares[::-1]):
        assert functools.reduce(operator.add, order) == 1  # added as a reader without exact sums does
    layout = chosen.layout(32 * len(widths))
    assert [group.bits for group in layout.groups for _ in range(group.rows // 32)] == wanted
    assert all(group.rows == GROUP_SIZES[group.bits] for group in layout.groups[:-1])


@pytest.mark.parametrize("index", [0, 1])
def test_more_bits_buy_less_loss_from_one_extreme_to_the_other(index: int) -> None:
    of = slot(index)
    found = options_of(of, tables(of))
    bits, accuracies = [option.num_bits for option in found], [option.accuracy for option in found]
    assert [bits[0], bits[-1]] == extremes(of)
    assert bits == sorted(set(bits))
    assert accuracies == sorted(accuracies)
    assert len(found) > 10


def test_the_accuracy_stands_for_nats() -> None:
    of = slot()
    costs = tables(of)
    last = options_of(of, costs)[-1]
    assert (1 - last.accuracy) ** 2 == pytest.approx(sum(table[0].sum() for table in costs.values()))


def test_a_matrix_that_matters_more_gets_more_bits() -> None:
    of = slot()
    costs = tables(of)
    for _, linear in of.linears:
        costs[linear.key] = costs[of.roles["gate"][0].key] * (100 if linear is of.roles["up"][0] else 1)
    for option in options_of(of, costs)[1:-1]:
        gate, up = (option.sets[role].layout(of.roles[role][0].in_features).packed_rows for role in ("gate", "up"))
        assert gate <= up


@pytest.mark.parametrize("bits", [2.5, 4.4, 6.3, 8.0])
def test_a_set_within_a_budget_spends_it(bits: float) -> None:
    table = 4.0 ** -np.array(WIDTHS)[:, None] * np.sort(np.random.default_rng(1).lognormal(0, 2, 64))[::-1]
    rows, columns = 64 * 32, 4096
    taken = storage_bits(pricing.set_within(table, columns, int(bits * rows * columns)).layout(rows), columns, False)
    assert 0.96 * bits < taken / (rows * columns) <= bits


def test_a_budget_too_small_for_anything_gets_two_bits() -> None:
    assert pricing.set_within(np.ones((len(WIDTHS), 4)) * 4.0 ** -np.array(WIDTHS)[:, None], 64, 0).bits == (2,)
