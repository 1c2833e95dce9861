"""A sequence's tokens, and the pages that hold the keys and values of the first of them: integers only, no tensors."""

from collections.abc import Iterable
from dataclasses import dataclass

from polybit.cache.pages import PAGE_TOKENS, START, Key, PageBook, key_after, pages_for

WORTH_COPYING = 16  # tokens of a page; fewer are computed anew


@dataclass(frozen=True)
class Copy:
    """What lies in page `source` is wanted in page `target` before anything is written there."""

    source: int
    target: int


class Holding:
    """`pages` is as long as `num_stored` tokens need, or longer where a step is about to store more."""

    companion: "Holding | None" = None  # another text, which grows by the same tokens in the same steps

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = list(tokens)
        self.num_stored = 0  # leading tokens whose keys and values are in the pool
        self.num_reused = 0  # of those that were stored at first, how many others had stored
        self.pages: list[int] = []
        self._keys: list[Key] = [START]
        self._num_complete = 0  # leading pages that the book knows as whole
        self._is_cut = False  # tokens were taken back, and the pages do not know it yet

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen."""
        return len(self.tokens) - self.num_stored

    @property
    def members(self) -> tuple["Holding", ...]:
        """Itself and its companion."""
        return (self,) if self.companion is None else (self, self.companion)

    @property
    def num_guessable(self) -> int:
        """Guesses that may be tried out behind its last token."""
        return 0

    def key(self, num_pages: int) -> Key:
        """Of the tokens in the first `num_pages` pages."""
        while len(self._keys) <= num_pages:
            start = (len(self._keys) - 1) * PAGE_TOKENS
            self._keys.append(key_after(self._keys[-1], self.tokens[start : start + PAGE_TOKENS]))
        return self._keys[num_pages]

    # ---- what others have stored already

    def findable(self, book: PageBook) -> list[int]:
        """Whole pages, from where the stored tokens end, that the book has. Never all tokens: the last is computed."""
        first, last = self.num_stored // PAGE_TOKENS, (len(self.tokens) - 1) // PAGE_TOKENS
        found = list[int]()
        for index in range(first, last):
            page = book.find(self.key(index + 1))
            if page is None:
                break
            found.append(page)
        return found

    def reuse(self, book: PageBook) -> Copy | None:
        """Share the pages that are there, and copy the one that has some of the next tokens where it is worth it.

        Only between pages: where the stored tokens end inside of one, nothing happens.
        """
        if self.num_stored % PAGE_TOKENS:
            return None
        for page in self.findable(book):
            book.hold(page)
            self.pages.append(page)
            self._advance(PAGE_TOKENS)
        self._num_complete = len(self.pages)
        return self._copy_part(book)

    def _copy_part(self, book: PageBook) -> Copy | None:
        start = self.num_stored
        rest = self.tokens[start : min(start + PAGE_TOKENS, len(self.tokens) - 1)]
        source, common = book.nearest(self.key(len(self.pages)), rest)
        if common < WORTH_COPYING or book.num_free == 0:
            return None
        self.pages += book.take(1)  # perhaps the source itself, which then keeps what it has
        self._advance(common)
        return Copy(source, self.pages[-1])

    def _advance(self, count: int) -> None:
        self.num_stored += count
        self.num_reused += count

    # ---- taking and giving

    @property
    def takes_one(self) -> bool:
        """Whether it has one token to store, alone, and room for it in a page that is held."""
        return (
            self.num_stored == len(self.tokens) - 1
            and self.num_stored < PAGE_TOKENS * len(self.pages)
            and not self._is_cut
            and self.companion is None
        )

    def take_back(self, count: int) -> None:
        """Drop the last `count` tokens. The one before them runs again: the next follows from it."""
        del self.tokens[len(self.tokens) - count :]
        del self._keys[len(self.tokens) // PAGE_TOKENS + 1 :]
        self.num_stored = min(self.num_stored, len(self.tokens) - 1)
        self._is_cut = True
        if self.companion is not None:
            self.companion.take_back(count)

    def mend(self, book: PageBook) -> None:
        """After `take_back`, before anything is stored: leave pages that others may read, and forget what is wrong."""
        if not self._is_cut:
            return
        first = self.num_stored // PAGE_TOKENS  # page that is written next
        if first < self._num_complete:  # from its beginning, or from a copy of what stays right
            self.num_stored, self._num_complete = first * PAGE_TOKENS, first
        kept = pages_for(self.num_stored)
        book.give_back(self.pages[kept:])
        del self.pages[kept:]
        if self._num_complete < kept:
            book.forget(self.pages[-1])
        self._is_cut = False

    def num_missing(self, length: int) -> int:
        """Pages that the first `length` tokens need beside those that are held."""
        return max(0, pages_for(length) - len(self.pages))

    @property
    def num_lacking(self) -> int:
        """Pages that all members' tokens need beside those that are held."""
        return sum(member.num_missing(len(member.tokens)) for member in self.members)

    def extend(self, book: PageBook, length: int) -> None:
        """Take pages for the first `length` tokens. Raises OutOfMemory, with nothing taken."""
        self.pages += book.take(self.num_missing(length))

    def publish(self, book: PageBook) -> None:
        """Let others find the pages that are full, and hold theirs where they have the same."""
        for index in range(self._num_complete, self.num_stored // PAGE_TOKENS):
            tokens = self.tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            self.pages[index] = book.complete(self.pages[index], self.key(index), tokens, self.key(index + 1))
            self._num_complete = index + 1

    def publish_all(self, book: PageBook) -> None:
        """`publish`, and let others copy what the last page has so far."""
        self.publish(book)
        start = self._num_complete * PAGE_TOKENS
        if start < self.num_stored:
            book.note(
                self.pages[self._num_complete], self.key(self._num_complete), self.tokens[start : self.num_stored]
            )

    def release(self, book: PageBook) -> None:
        """Give all pages back; others may find them until they are taken. What comes next starts from nothing."""
        self.mend(book)
        self.publish_all(book)
        self._give_back(book)

    def discard(self, book: PageBook) -> None:
        """`release`, and let nobody find what was stored: it may be wrong."""
        for page in self.pages:
            book.forget(page)
        self._give_back(book)

    def _give_back(self, book: PageBook) -> None:
        book.give_back(self.pages)
        self.pages.clear()
        self.num_stored = self.num_reused = self._num_complete = 0
        self._is_cut = False
