import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from polybit.cache import PAGE_TOKENS, PageBook, pages_for
from polybit.cache.pages import START, key_after
from polybit.errors import OutOfMemory

TOTAL = 12
TEXTS = [[i] * PAGE_TOKENS for i in range(3)]  # few, so that pages often have the same


class Schedule(RuleBasedStateMachine):
    """Any order of taking, filling, sharing and giving back."""

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.book = PageBook(TOTAL)
        self.holds = []  # a page as often as it is held

    @rule(target=held, count=st.integers(0, TOTAL + 1))
    def take(self, count):
        if count > self.book.num_free:
            before = self.book.num_free
            with pytest.raises(OutOfMemory):
                self.book.take(count)
            assert self.book.num_free == before
            return multiple()
        pages = self.book.take(count)
        assert len(set(pages)) == count
        assert set(pages).isdisjoint(self.holds)
        self.holds += pages
        return pages

    @rule(target=held, pages=consumes(held), text=st.sampled_from(TEXTS))
    def fill(self, pages, text):
        """All pages with the same: one is left of them."""
        key = key_after(START, text)
        found = [self.book.complete(page, START, text, key) for page in pages]
        for old, new in zip(pages, found, strict=True):
            self.holds.remove(old)
            self.holds.append(new)
        if pages:
            assert set(found) == {self.book.find(key)}
        return found

    @rule(target=held, text=st.sampled_from(TEXTS))
    def share(self, text):
        page = self.book.find(key_after(START, text))
        if page is None:
            return multiple()
        self.book.hold(page)
        self.holds.append(page)
        return [page]

    @rule(pages=consumes(held))
    def give_back(self, pages):
        self.book.give_back(pages)
        for page in pages:
            self.holds.remove(page)

    @invariant()
    def no_page_is_lost(self):
        assert self.book.num_free + self.book.num_held == TOTAL
        assert self.book.num_held == len(set(self.holds))
        assert all(self.book.is_free(page) != (page in self.holds) for page in range(TOTAL))


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(max_examples=40)


def filled(book, tokens, before=START):
    """A page that holds `tokens`, given back; the key after it."""
    (page,) = book.take(1)
    key = key_after(before, tokens)
    book.complete(page, before, tokens, key)
    book.give_back([page])
    return page, key


def test_a_page_cannot_be_given_back_twice():
    book = PageBook(2)
    pages = book.take(1)
    book.give_back(pages)
    with pytest.raises(KeyError):
        book.give_back(pages)


def test_the_least_recently_used_page_is_taken_first_and_then_not_found():
    book = PageBook(3)
    (first, key_1), (second, key_2), (third, key_3) = (filled(book, text) for text in TEXTS)
    assert len({first, second, third}) == 3
    book.hold(book.find(key_1))
    book.give_back([first])  # the most recently used now
    assert book.take(2) == [second, third]
    assert (book.find(key_1), book.find(key_2), book.find(key_3)) == (first, None, None)


def test_blank_pages_are_taken_before_those_that_hold_something():
    book = PageBook(3)
    page, key = filled(book, TEXTS[0])
    assert page not in book.take(2)
    assert book.find(key) == page


def test_the_same_tokens_after_others_are_another_key():
    book = PageBook(4)
    _, key = filled(book, TEXTS[0])
    page, longer = filled(book, TEXTS[0], before=key)
    assert book.find(longer) == page
    assert key_after(START, TEXTS[0]) != key_after(key, TEXTS[0])


def test_the_page_with_the_longest_common_beginning_is_nearest():
    book = PageBook(4)
    filled(book, [1] * 10 + [2] * (PAGE_TOKENS - 10))
    longest, _ = filled(book, [1] * 20 + [3] * (PAGE_TOKENS - 20))
    assert book.nearest(START, [1] * 30) == (longest, 20)
    assert book.nearest(START, [9] * 30) == (-1, 0)
    assert book.nearest(b"other", [1] * 30) == (-1, 0)


def test_a_page_that_only_began_is_nearest_too_and_a_forgotten_one_is_not():
    book = PageBook(4)
    (page,) = book.take(1)
    book.note(page, START, [5, 6, 7])
    assert book.nearest(START, [5, 6, 8]) == (page, 2)
    book.forget(page)
    assert book.nearest(START, [5, 6, 8]) == (-1, 0)


@given(st.integers(0, 10_000))
def test_pages_for_is_the_smallest_that_holds(num_tokens):
    pages = pages_for(num_tokens)
    assert (pages - 1) * PAGE_TOKENS < num_tokens <= pages * PAGE_TOKENS or num_tokens == pages == 0
