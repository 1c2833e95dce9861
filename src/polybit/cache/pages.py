"""Who holds which page of the K/V pool, and what the pages hold: integers only, no tensors.

A page is held by one sequence or shared by several; else it is free. A free page keeps its contents until it is taken,
the least recently used one first. What a page holds is known by its tokens and the key of all tokens before them, so
that sequences which begin alike find each other's pages.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from polybit.errors import OutOfMemory

PAGE_TOKENS = 256  # P, tokens a page

Key = bytes  # of whole pages of tokens, from a sequence's first one on
START: Key = b""  # of none


def pages_for(num_tokens: int) -> int:
    """Pages that hold `num_tokens`."""
    return -(-num_tokens // PAGE_TOKENS)


def key_after(before: Key, tokens: Sequence[int]) -> Key:
    """The key of a page more: chained, because keys and values depend on all tokens before them."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Contents:
    """The first tokens that a page holds keys and values of, at most P, and the key of all before them."""

    before: Key
    tokens: "array[int]"

    @classmethod
    def of(cls, before: Key, tokens: Sequence[int]) -> "Contents":
        return cls(before, array("q", tokens))

    def common(self, tokens: "array[int]") -> int:
        """How many first tokens are the same."""
        longest = min(len(self.tokens), len(tokens))
        if self.tokens[:longest] == tokens[:longest]:
            return longest
        return next(i for i in range(longest) if self.tokens[i] != tokens[i])


class PageBook:
    """Pages 0 to total - 1. Free and held ones are always `total` together."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._blank = list(reversed(range(total)))  # free, and nothing in them is known
        self._kept = dict[int, None]()  # free, contents known; the least recently used first
        self._holders = dict[int, int]()  # of every held page, how many
        self._contents = dict[int, Contents]()
        self._whole = dict[Key, int]()  # the page that completes a key
        self._after = dict[Key, dict[int, None]]()  # pages by the key before them

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._kept)

    @property
    def num_held(self) -> int:
        return len(self._holders)

    def is_free(self, page: int) -> bool:
        return page not in self._holders

    # ---- holding

    def take(self, count: int) -> list[int]:
        """Hold `count` free pages, whose contents are forgotten; all of them or none. Raises OutOfMemory."""
        if count > self.num_free:
            raise OutOfMemory(
                f"{count} more pages of {PAGE_TOKENS} tokens are needed, but the K/V pool has {self.num_free} of "
                f"{self.total} free; let other generations end, or load with a larger --cache-tokens (cache_tokens)"
            )
        return [self._take_one() for _ in range(count)]

    def _take_one(self) -> int:
        if self._blank:
            page = self._blank.pop()
        else:
            page = next(iter(self._kept))
            del self._kept[page]
            self.forget(page)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Share a page, or take a free one as it is."""
        if self.is_free(page):
            del self._kept[page]
        self._holders[page] = self._holders.get(page, 0) + 1

    def give_back(self, pages: Iterable[int]) -> None:
        """Let go of a sequence's pages, in its order; the last of them will be taken by others first."""
        for page in reversed(list(pages)):
            others = self._holders[page] - 1  # a KeyError here is a page given back twice: never an input's fault
            if others:
                self._holders[page] = others
                continue
            del self._holders[page]
            if page in self._contents:
                self._kept[page] = None
            else:
                self._blank.append(page)

    # ---- finding

    def find(self, key: Key) -> int | None:
        """The page that completes `key`."""
        return self._whole.get(key)

    def nearest(self, before: Key, tokens: Sequence[int]) -> tuple[int, int]:
        """A page after `before` that begins like `tokens`, and how many tokens are the same; (-1, 0): there is none."""
        wanted, best = array("q", tokens), (-1, 0)
        for page in self._after.get(before, ()):
            common = self._contents[page].common(wanted)
            if common > best[1]:
                best = page, common
        return best

    def complete(self, page: int, before: Key, tokens: Sequence[int], key: Key) -> int:
        """Say that a held page has P tokens now: the page to hold from here on, another where one has the same."""
        if (same := self._whole.get(key)) is not None and same != page:
            self.hold(same)
            self.give_back([page])
            return same
        self.note(page, before, tokens)
        self._whole[key] = page
        return page

    def forget(self, page: int) -> None:
        """Let nobody find what the page has."""
        contents = self._contents.pop(page, None)
        if contents is None:
            return
        beside = self._after[contents.before]
        del beside[page]
        if not beside:
            del self._after[contents.before]
        if len(contents.tokens) == PAGE_TOKENS:
            key = key_after(contents.before, contents.tokens)
            if self._whole.get(key) == page:
                del self._whole[key]

    def note(self, page: int, before: Key, tokens: Sequence[int]) -> None:
        """Say what a held page has so far."""
        self.forget(page)
        self._contents[page] = Contents.of(before, tokens)
        self._after.setdefault(before, {})[page] = None
