"""Quantized pages as the CPU's kernels read and write them: every mix of widths, every scale, any number of threads."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from closeness import assert_close
from kernels.definitions import unpacked
from kernels.test_quantized_pages import CPU, Case, filled, mixed, randn
from polybit.kernels import reference
from polybit.kernels.pages import FULL, KVBits, Pages, new_pages

cpu = pytest.importorskip("polybit.kernels.cpu")

WIDTHS = [KVBits(k, v) for k in (4, 8, 16) for v in (4, 8, 16) if KVBits(k, v) != FULL]
FEW = {
    "head of 16, first token": Case(((1, 0),), dim=16),
    "head of 80": Case(((2, 11), (1, 32)), heads=(6, 1), dim=80, softcap=2.0),
    "head of 64, pages end between keys": Case(((4, 90), (1, 31), (3, 0)), heads=(9, 3), dim=64, page=7),
    "head of 128, window": Case(((1, 150), (2, 40)), heads=(8, 2), dim=128, page=64, window=33),
    "head of 256, window and softcap": Case(((3, 64),), heads=(2, 2), dim=256, page=256, window=50, softcap=3.0),
}


@pytest.mark.parametrize("case", FEW.values(), ids=FEW.keys())
@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_few_queries_over_every_mix_of_widths(random, monkeypatch, bits, case) -> None:
    """Without the reference's copy at full size."""
    case = replace(case, bits=bits)
    k_pages, v_pages, table, rows = filled(cpu, CPU, torch.float32, random, case)
    q = [randn(random, torch.float32, new, case.heads[0], case.dim) for new, _ in case.sequences]
    given = (torch.cat(q), k_pages, v_pages, table, *_numbers_of(case), case.dim**-0.5, case.window, case.softcap)
    expected = reference.attention(*given)
    monkeypatch.delattr(reference, "attention")
    found = cpu.attention(*given)
    assert_close(found, mixed(case, q, k_pages, v_pages, rows), "attention")
    assert_close(found, expected, "attention")


def _numbers_of(case: Case) -> tuple[Tensor, Tensor, int]:
    """query_starts, lengths, max_queries"""
    counts = torch.tensor([new for new, _ in case.sequences])
    lengths = torch.tensor([new + old for new, old in case.sequences], dtype=torch.int32)
    return F.pad(counts.cumsum(0), (1, 0)).int(), lengths, int(counts.max())


def test_a_step_needs_nothing_of_the_reference(random, monkeypatch) -> None:
    for name in ("decode_attention", "write_kv"):
        monkeypatch.delattr(reference, name)
    k_pages, v_pages, table, _ = filled(cpu, CPU, torch.float32, random, Case(((1, 5),), dim=64), but_last=True)
    q, k, v = (torch.randn(1, heads, 64, generator=random) for heads in (4, 2, 2))
    length = torch.tensor([6], dtype=torch.int32)
    assert cpu.decode_attention(q, k, v, k_pages, v_pages, table, length, *[None] * 3, 0.1, None, None).isfinite().all()


@pytest.mark.parametrize("bits", WIDTHS, ids=str)
def test_a_step_stores_what_a_prompt_does(random, bits) -> None:
    """To the bit: what a conversation remembers does not depend on how it came."""
    k, v = randn(random, torch.float32, 2, 9, 2, 80)
    stepwise, at_once = (_pages((3, 4, 2, 80), bits) for _ in range(2))
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    for t in range(9):
        length = torch.tensor([t + 1], dtype=torch.int32)
        cpu.decode_attention(
            k[t : t + 1], k[t : t + 1], v[t : t + 1], *stepwise, table, length, *[None] * 3, 1, 3, None
        )
    slots = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3, 4])
    cpu.write_kv(k, v, *at_once, slots)
    for one, other in zip(stepwise, at_once, strict=True):
        assert torch.equal(_values(one).flatten(0, 1)[slots], _values(other).flatten(0, 1)[slots])


def _pages(shape: tuple[int, ...], bits: KVBits) -> tuple[Pages, Pages]:
    return new_pages(shape, bits.k, torch.float32, CPU), new_pages(shape, bits.v, torch.float32, CPU)


def _values(pages: Pages) -> Tensor:
    return pages if isinstance(pages, Tensor) else unpacked(pages)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("bits", [KVBits(4, 8), KVBits(16, 4)], ids=str)
def test_neither_threads_nor_company_change_a_bit(random, bits) -> None:
    case = Case(((1, 75), (3, 20), (9, 2), (1, 40)), heads=(6, 2), dim=64, window=60, bits=bits)
    k_pages, v_pages, table, _ = filled(cpu, CPU, torch.float32, random, case)
    starts, lengths, most = _numbers_of(case)
    q = torch.randn(int(starts[-1]), 6, 64, generator=random)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(cpu.attention(q, k_pages, v_pages, table, starts, lengths, most, 0.2, 60, None))
    for s in (0, 1, 3):
        own, count = slice(int(starts[s]), int(starts[s + 1])), case.sequences[s][0]
        first = torch.tensor([0, count]).int()
        alone = cpu.attention(
            q[own], k_pages, v_pages, table[s : s + 1], first, lengths[s : s + 1], count, 0.2, 60, None
        )
        assert all(torch.equal(alone, among[own]) for among in found)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_of_every_magnitude(bits) -> None:
    """From what underflows to what just does not overflow, normal and subnormal, as torch rounds to fp16."""
    x = torch.zeros(4000, 1, 32)
    x[:, 0, 0] = torch.logspace(-10, 6.45, 4000) * torch.tensor([1, -1]).repeat(2000)
    pages = [[new_pages((4, 1000, 1, 32), bits, torch.float32, CPU) for _ in range(2)] for _ in range(2)]
    for backend, (k_pages, v_pages) in zip((cpu, reference), pages, strict=True):
        backend.write_kv(x, -x, k_pages, v_pages, torch.arange(4000))
    for found, expected in zip(*pages, strict=True):
        assert torch.equal(found.scales, expected.scales)
        assert torch.equal(found.codes, expected.codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_scale_is_read(random, bits) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()]
    pages = new_pages((len(every), 1, 1, 32), bits, torch.float32, CPU)
    pages.codes.random_(-(1 << 31), (1 << 31) - 1, generator=random)
    pages.scales.copy_(every.view(-1, 1, 1, 1))
    keys, ones = torch.zeros(len(every), 1, 1, 32), torch.ones(len(every), dtype=torch.int32)
    starts, table = torch.arange(len(every) + 1, dtype=torch.int32), torch.arange(len(every), dtype=torch.int32)
    found = cpu.attention(keys[:, 0], keys, pages, table[:, None], starts, ones, 1, 1.0, None, None)
    expected = unpacked(pages)[:, 0]
    error = (found - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2)).clamp_min(1e-30)
    assert error.max() < 1e-6


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf, 1e8])
@pytest.mark.parametrize("bits", [KVBits(4, 8), KVBits(8, 4)], ids=str)
def test_what_is_not_finite_stays_so(random, bits, fault) -> None:
    """Too large for a scale of 16 bits as well."""
    k, v = torch.randn(2, 8, 1, 32, generator=random)
    v[6, 0, 3] = fault
    k_pages, v_pages = _pages((2, 4, 1, 32), bits)
    cpu.write_kv(k, v, k_pages, v_pages, torch.arange(8))
    table, starts = torch.tensor([[0], [1]]).int(), torch.tensor([0, 1, 2]).int()
    lengths = torch.tensor([4, 4]).int()
    q = torch.randn(2, 1, 32, generator=random)
    found = cpu.attention(q, k_pages, v_pages, table, starts, lengths, 1, 0.2, None, None)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()
