import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from polybit.cache import PAGE_TOKENS, FreePages, pages_for
from polybit.errors import OutOfMemory

TOTAL = 12


class Schedule(RuleBasedStateMachine):
    """Any order of taking and giving back."""

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.free = FreePages(TOTAL)
        self.owned = set()

    @rule(target=held, count=st.integers(0, TOTAL + 1))
    def take(self, count):
        if count > self.free.num_free:
            before = self.free.num_free
            with pytest.raises(OutOfMemory):
                self.free.take(count)
            assert self.free.num_free == before
            return multiple()
        pages = self.free.take(count)
        assert len(set(pages)) == count
        assert self.owned.isdisjoint(pages)
        self.owned.update(pages)
        return pages

    @rule(pages=consumes(held))
    def give_back(self, pages):
        self.free.give_back(pages)
        self.owned.difference_update(pages)

    @invariant()
    def no_page_is_lost(self):
        assert self.free.num_free + self.free.num_held == TOTAL
        assert self.free.num_held == len(self.owned)


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(max_examples=40)


def test_a_page_cannot_be_given_back_twice():
    free = FreePages(2)
    pages = free.take(1)
    free.give_back(pages)
    with pytest.raises(KeyError):
        free.give_back(pages)


@given(st.integers(0, 10_000))
def test_pages_for_is_the_smallest_that_holds(num_tokens):
    pages = pages_for(num_tokens)
    assert (pages - 1) * PAGE_TOKENS < num_tokens <= pages * PAGE_TOKENS or num_tokens == pages == 0
