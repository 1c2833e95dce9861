"""Memory for packed words in pages of 2 MB, where the system has them.

A product reads every word once. In pages of 4 KB a core stops at each to look up where the next one is, and reads a
quarter to a third less a second. A large page may hold words of several matrices: they follow one another in regions,
each of which lasts as long as a matrix in it.
"""

import mmap
import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

PAGE = 1 << 21
REGION = 1 << 26  # what nobody has written to takes no memory
ALIGNMENT = 64  # a line of the caches


class Regions:
    """Hands out memory, one stretch after another."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._region: Callable[[], mmap.mmap | None] = lambda: None
        self._next = 0

    def words(self, count: int) -> Tensor:
        """[count] int32, of any content."""
        if not hasattr(mmap, "MADV_HUGEPAGE") or not count:
            return torch.empty(count, dtype=torch.int32)
        with self._turn:
            region = self._region()
            if region is None or self._next + 4 * count > len(region):
                region, self._next = _map_region(4 * count)
                self._region = weakref.ref(region)
            start = self._next
            self._next += -(-4 * count // ALIGNMENT) * ALIGNMENT
            return torch.frombuffer(region, dtype=torch.int32, count=count, offset=start)


def _map_region(size: int) -> tuple[mmap.mmap, int]:
    """A region with room for `size` bytes, and where its first large page starts."""
    region = mmap.mmap(-1, max(REGION, -(-size // PAGE) * PAGE) + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    return region, -torch.frombuffer(region, dtype=torch.uint8).data_ptr() % PAGE


words = Regions().words
