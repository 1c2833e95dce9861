from polybit.cache import PAGE_TOKENS, Holding, PageBook
from polybit.cache.pages import START


def stored(book, tokens):
    """A holding whose tokens are all stored, and can be found."""
    holding = Holding(tokens)
    holding.extend(book, len(tokens))
    holding.num_stored = len(tokens)
    holding.publish_all(book)
    return holding


def test_tokens_that_were_taken_back_are_not_found_any_more():
    book, tokens = PageBook(4), list(range(100))
    holding = stored(book, tokens)
    assert book.nearest(START, tokens) == (holding.pages[0], 100)
    holding.take_back(50)
    holding.mend(book)
    assert book.nearest(START, tokens) == (-1, 0)
    assert (holding.num_stored, holding.num_pending) == (49, 1)
    assert book.num_held == 1


def test_pages_beyond_what_was_taken_back_are_free():
    book = PageBook(8)
    holding = stored(book, range(4 * PAGE_TOKENS + 10))
    holding.take_back(2 * PAGE_TOKENS)
    assert not holding.takes_one
    holding.mend(book)
    assert holding.num_stored == len(holding.pages) * PAGE_TOKENS == 2 * PAGE_TOKENS
    assert book.num_held == 2
    assert book.find(holding.key(2)) == holding.pages[1]


def test_a_key_follows_the_tokens():
    holding, other = Holding([1] * PAGE_TOKENS), Holding([1] * (PAGE_TOKENS - 1) + [2])
    assert holding.key(1) != other.key(1)
    holding.take_back(1)
    holding.tokens.append(2)
    assert holding.key(1) == other.key(1)


def test_the_only_free_page_may_be_its_own_source():
    book = PageBook(1)
    stored(book, range(100)).release(book)
    holding = Holding(range(200))
    copy = holding.reuse(book)
    assert copy.source == copy.target == holding.pages[0]
    assert holding.num_stored == holding.num_reused == 100
