"""The step of a batch by two ways: the general one, and the one that remembers the page tables of the step before."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from polybit.cache import PAGE_TOKENS, Holding, pages_for
from polybit.generator.layout import DecodeLayout, Run, lay_out, onward, run_of, wanted_of
from polybit.generator.scheduler import Part

CPU = torch.device("cpu")


def holding(length, page):
    """A sequence whose last token is not stored yet, in pages from `page` on."""
    sequence = Holding(range(length))
    sequence.num_stored = length - 1
    sequence.pages = [page + 3 * i for i in range(pages_for(length))]
    return sequence


def test_parts_lie_one_after_another():
    first, second = Holding([5, 6, 7]), holding(PAGE_TOKENS + 2, 1)
    first.pages = [9]
    tokens, step = lay_out([run_of(Part(first, 2)), run_of(Part(second, 1))], CPU)
    assert tokens.tolist() == [5, 6, PAGE_TOKENS + 1]
    assert step.positions.tolist() == [0, 1, PAGE_TOKENS + 1]
    assert step.slots.tolist() == [9 * PAGE_TOKENS, 9 * PAGE_TOKENS + 1, 4 * PAGE_TOKENS + 1]
    assert step.page_table.tolist() == [[9, 0], [1, 4]]
    assert step.query_starts.tolist() == [0, 2, 3]
    assert step.lengths.tolist() == [2, PAGE_TOKENS + 2]
    assert (step.max_queries, step.max_length) == (2, PAGE_TOKENS + 2)


def test_guesses_come_behind_the_last_token_and_want_logits_too():
    first, second = holding(PAGE_TOKENS, 1), Holding([5, 6, 7])
    first.pages, second.pages = [1, 4], [9]
    runs = [run_of(Part(first, 1, 2, [8, 9])), run_of(Part(second, 2))]
    assert runs == [Run([PAGE_TOKENS - 1, 8, 9], PAGE_TOKENS - 1, [1, 4], 3), Run([5, 6], 0, [9], 0)]
    assert wanted_of(runs) == [0, 1, 2]
    _, step = lay_out(runs, CPU)
    slots = [2 * PAGE_TOKENS - 1, 4 * PAGE_TOKENS, 4 * PAGE_TOKENS + 1, 9 * PAGE_TOKENS, 9 * PAGE_TOKENS + 1]
    assert step.slots.tolist() == slots
    assert step.lengths.tolist() == [PAGE_TOKENS + 2, 2]


batches = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 50)), min_size=1, max_size=5)


@given(st.lists(batches, min_size=1, max_size=6))
def test_a_decode_layout_says_the_same_whatever_it_laid_out_before(steps):
    layout = DecodeLayout()
    for batch in steps:
        sequences = [holding(length, page) for length, page in batch]
        runs = [run_of(Part(sequence, 1)) for sequence in sequences]
        assert_same(layout(runs), lay_out(runs, CPU)[1])


@given(batches.map(lambda batch: [holding(length, page) for length, page in batch]))
def test_a_step_goes_onward_until_a_sequence_has_to_take_a_page(sequences):
    step = DecodeLayout()([run_of(Part(sequence, 1)) for sequence in sequences])
    for _ in range(PAGE_TOKENS + 1):
        for sequence in sequences:
            sequence.tokens.append(0)
            sequence.num_stored += 1
        step = onward(step)
        if not all(sequence.takes_one for sequence in sequences):
            break
        assert_same(step, lay_out([run_of(Part(sequence, 1)) for sequence in sequences], CPU)[1])
    assert step is None


def assert_same(found, expected):
    for name in ("positions", "slots", "page_table", "query_starts", "lengths"):
        tensor, wanted = getattr(found, name), getattr(expected, name)
        assert torch.equal(tensor, wanted), name
        assert tensor.dtype == wanted.dtype
    assert (found.max_queries, found.max_length) == (expected.max_queries, expected.max_length)
