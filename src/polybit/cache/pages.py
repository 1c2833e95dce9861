"""Which pages of the K/V pool are free: integers only, no tensors."""

from collections.abc import Iterable

from polybit.errors import OutOfMemory

PAGE_TOKENS = 256  # P, tokens a page


def pages_for(num_tokens: int) -> int:
    """Pages that hold `num_tokens`."""
    return -(-num_tokens // PAGE_TOKENS)


class FreePages:
    """Pages 0 to total - 1, each either free or held by someone. Pages given back are taken again first."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(reversed(range(total)))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_held(self) -> int:
        return len(self._held)

    def take(self, count: int) -> list[int]:
        """Hold `count` pages; all of them or none. Raises OutOfMemory where fewer are free."""
        if count > self.num_free:
            raise OutOfMemory(
                f"{count} more pages of {PAGE_TOKENS} tokens are needed, but the K/V pool has {self.num_free} of "
                f"{self.total} free; let other generations end, or load with a larger cache_tokens"
            )
        taken = [self._free.pop() for _ in range(count)]
        self._held.update(taken)
        return taken

    def give_back(self, pages: Iterable[int]) -> None:
        """Free pages that `take` handed out."""
        for page in reversed(list(pages)):
            self._held.remove(page)  # a KeyError here is a page given back twice: never an input's fault
            self._free.append(page)
