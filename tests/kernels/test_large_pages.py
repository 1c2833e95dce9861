"""Memory in large pages: stretches of their own, given back when nobody has any of a region."""

import gc
import mmap
import weakref

import pytest
import torch

large_pages = pytest.importorskip("polybit.kernels.cpu.large_pages")


def test_stretches_are_apart_and_start_on_lines() -> None:
    regions = large_pages.Regions()
    counts = (1, 1000, 16, 0, 3)
    parts = [regions.words(count) for count in counts]
    for value, part in enumerate(parts):
        part.fill_(value)
    assert [part.tolist() for part in parts] == [[value] * count for value, count in enumerate(counts)]
    assert all(part.dtype == torch.int32 and part.data_ptr() % large_pages.ALIGNMENT == 0 for part in parts)


def test_more_than_a_region_holds() -> None:
    regions, count = large_pages.Regions(), large_pages.REGION // 4 + 1000
    small, large = regions.words(8), regions.words(count)
    large[-1], small[-1] = 5, 6
    assert (len(large), large[-1], small[-1]) == (count, 5, 6)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages to ask for")
def test_a_region_goes_with_the_last_stretch(monkeypatch) -> None:
    mapped = list[weakref.ref[mmap.mmap]]()
    map_region = large_pages._map_region

    def noting(size: int) -> tuple[mmap.mmap, int]:
        found = map_region(size)
        mapped.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(large_pages, "_map_region", noting)
    regions = large_pages.Regions()
    first, second = regions.words(10), regions.words(10)
    del first
    gc.collect()
    assert len(mapped) == 1
    assert mapped[0]() is not None
    del second
    gc.collect()
    assert mapped[0]() is None
    regions.words(10).zero_()
    assert len(mapped) == 2
