"""Quantized keys and values: what stands in pages against the definition, attention against what stands there."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from kernels.definitions import hadamard, one_query, unpacked
from polybit.errors import ConfigError
from polybit.kernels.pages import FULL, KVBits, QuantizedPages, group_of, new_pages, read_bits, row_bytes, tensors_of
from polybit.kernels.protocol import HeadNorm, Rotation

CPU = torch.device("cpu")
Q4, Q6, HALF = KVBits(4, 4), KVBits(8, 4), KVBits(16, 8)
EDGE = 1e-3  # of a step: where arithmetic decides between two codes


@dataclass(frozen=True)
class Case:
    """Sequences of n new tokens after m old ones."""

    sequences: tuple[tuple[int, int], ...]
    heads: tuple[int, int] = (4, 2)  # Hq, Hkv
    dim: int = 32
    page: int = 4
    window: int | None = None
    softcap: float | None = None
    bits: KVBits = Q4


PROMPTS = {
    "one token": Case(((1, 0),), dim=16),
    "several": Case(((1, 12), (3, 2), (9, 0)), dim=48, bits=Q6),
    "a head for each, window": Case(((2, 30), (5, 1)), heads=(3, 3), window=5),
    "full keys": Case(((2, 9), (5, 1)), bits=HALF),
    "head of 80": Case(((2, 11),), heads=(6, 1), dim=80, softcap=2.0, bits=Q6),
    "whole tiles": Case(((20, 110), (1, 3)), heads=(2, 1), page=64),
    "divided": Case(((2, 150), (1, 3)), heads=(2, 1), page=64, bits=Q6),
}
STEPS = {
    "first token": Case(((1, 0),), dim=16),
    "several": Case(((1, 12), (1, 0), (1, 3)), dim=48, bits=Q6),
    "a head for each, window": Case(((1, 70), (1, 5)), heads=(3, 3), window=33),
    "full keys": Case(((1, 9), (1, 1)), bits=HALF),
    "head of 80": Case(((1, 11),), heads=(6, 1), dim=80, softcap=2.0, bits=Q6),
    "many keys": Case(((1, 140), (1, 2)), heads=(8, 1), dim=128, page=256),
    "many keys in small pages": Case(((1, 140),), heads=(2, 1), page=100, bits=Q6),
}


def randn(random: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """With features that stick out, as keys have them."""
    x = torch.randn(shape, generator=random)
    x[..., ::13] *= 8
    return x.to(dtype)


@pytest.mark.parametrize("dim", [16, 48, 80, 128])
@pytest.mark.parametrize("bits", [KVBits(4, 8)], ids=str)
def test_what_is_written_is_the_definitions(backend, device, dtype, random, dim, bits) -> None:
    pages = [new_pages((3, 4, 3, dim), kind, dtype, device) for kind in (bits.k, bits.v)]
    k, v = (randn(random, dtype, 5, 3, dim) for _ in range(2))
    v[2, 1] = 0
    slots = torch.tensor([11, 0, 5, 6, 2])
    backend.write_kv(k.to(device), v.to(device), *pages, slots.to(device))
    for x, found in zip((k, v), pages, strict=True):
        _check_definition(x, found, slots)


def _check_definition(x: Tensor, pages: QuantizedPages, slots: Tensor) -> None:
    group, half = group_of(x.shape[-1]), 1 << pages.bits - 1
    turned = x.double().unflatten(-1, (-1, group)) @ hadamard(group)
    scales = pages.scales.cpu().double().flatten(0, 1)[slots]
    largest = turned.abs().amax(-1)
    assert_close(scales.abs().half(), largest / half)
    found = unpacked(pages).flatten(0, 1)[slots].unflatten(-1, (-1, group)) @ hadamard(group)
    steps = scales.abs()[..., None]
    levels = torch.where(steps == 0, 0, turned / scales[..., None].where(steps > 0, 1))
    assert levels.min() >= -half - 0.1  # the largest is the one at the end of the longer side
    error = (found - turned).abs() / steps.clamp_min(1e-9)
    assert error[levels < half - 1].max() <= 0.5 + EDGE
    assert error.max() <= 1 + EDGE  # the shorter side ends one step before the other
    assert torch.equal(found[largest == 0], turned[largest == 0])
    untouched = torch.ones(12, dtype=torch.bool).index_fill(0, slots, False)
    assert pages.scales.cpu().flatten(0, 1)[untouched].isnan().all()


@pytest.mark.parametrize("case", PROMPTS.values(), ids=PROMPTS.keys())
def test_attention(backend, device, dtype, random, case) -> None:
    """Pages in random order, and NaN where nobody wrote."""
    k_pages, v_pages, table, rows = filled(backend, device, dtype, random, case)
    q = [randn(random, dtype, new, case.heads[0], case.dim) for new, _ in case.sequences]
    actual = backend.attention(
        torch.cat(q).to(device),
        k_pages,
        v_pages,
        table.to(device),
        torch.tensor([0, *(new for new, _ in case.sequences)], device=device).cumsum(0, dtype=torch.int32),
        torch.tensor([new + old for new, old in case.sequences], dtype=torch.int32, device=device),
        max(new for new, _ in case.sequences),
        case.dim**-0.5,
        case.window,
        case.softcap,
    )
    assert actual.dtype == dtype
    assert_close(actual, mixed(case, q, k_pages, v_pages, rows), "attention")


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS.keys())
def test_decode_attention(backend, device, dtype, random, case) -> None:
    """Against attention over what it stored, which is compared with what `write_kv` stores."""
    _check_step(backend, device, dtype, random, case)


def test_decode_attention_in_bfloat16(backend, device, random) -> None:
    _check_step(backend, device, torch.bfloat16, random, STEPS["several"])


def _check_step(backend, device, dtype, random, case) -> None:
    k_pages, v_pages, table, rows = filled(backend, device, dtype, random, case, but_last=True)
    count, lengths = len(rows), [old + 1 for _, old in case.sequences]
    q = randn(random, dtype, count, case.heads[0], case.dim)
    k, v = (randn(random, dtype, count, case.heads[1], case.dim) for _ in range(2))
    norm = HeadNorm(torch.rand(case.dim, generator=random).to(dtype), 1e-5, 1.0)
    angles = torch.rand(max(lengths), case.dim // 2, generator=random) * 6
    positions = torch.tensor(lengths) - 1
    normed = [backend.rms_norm(x.to(device), norm.weight.to(device), norm.eps, norm.offset) for x in (q, k)]
    turns = angles.cos().to(device), angles.sin().to(device)
    turned_q, turned_k = backend.rope(*normed, positions.to(device), *turns, False)
    slots = torch.stack([row[-1] for row in rows])
    expected_pages = [_copied(pages) for pages in (k_pages, v_pages)]
    backend.write_kv(turned_k, v.to(device), *expected_pages, slots.to(device))

    norm = HeadNorm(norm.weight.to(device), norm.eps, norm.offset)
    actual = backend.decode_attention(
        q.to(device),
        k.to(device),
        v.to(device),
        k_pages,
        v_pages,
        table.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        norm,
        norm,
        Rotation(*turns, False),
        case.dim**-0.5,
        case.window,
        case.softcap,
    )
    for pages, expected in zip((k_pages, v_pages), expected_pages, strict=True):
        found, wanted = _numbers(pages).flatten(0, 1), _numbers(expected).flatten(0, 1)
        kept = torch.ones(len(found), dtype=torch.bool).index_fill(0, slots, False)
        assert torch.equal(found[kept].nan_to_num(), wanted[kept].nan_to_num())
        near = (found[slots] - wanted[slots]).norm() / wanted[slots].norm()
        assert near <= 0.02  # rounding before the transform may move a code by one
    queries = list(turned_q.cpu().split(1))
    assert actual.dtype == dtype
    assert_close(actual, mixed(case, queries, k_pages, v_pages, rows), "attention")


def filled(backend, device, dtype, random, case, but_last=False):
    """Pages, page table, and the slots of each sequence's tokens; the last of which may be left unwritten."""
    lengths = [new + old for new, old in case.sequences]
    counts = [-(-length // case.page) for length in lengths]
    order = torch.randperm(sum(counts), generator=random).split(counts)
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for s, pages in enumerate(order):
        table[s, : len(pages)] = pages
    shape = (sum(counts), case.page, case.heads[1], case.dim)
    k_pages, v_pages = (new_pages(shape, kind, dtype, device) for kind in (case.bits.k, case.bits.v))
    rows = [
        pages[torch.arange(n) // case.page] * case.page + torch.arange(n) % case.page
        for pages, n in zip(order, lengths, strict=True)
    ]
    slots = torch.cat([row[: len(row) - but_last] for row in rows])
    k, v = (randn(random, dtype, len(slots), case.heads[1], case.dim) for _ in range(2))
    if len(slots):
        backend.write_kv(k.to(device), v.to(device), k_pages, v_pages, slots.to(device))
    return k_pages, v_pages, table, rows


def _copied(pages):
    if isinstance(pages, Tensor):
        return pages.clone()
    return QuantizedPages(pages.codes.clone(), pages.scales.clone(), pages.bits)


def _numbers(pages) -> Tensor:
    return pages.cpu().double() if isinstance(pages, Tensor) else unpacked(pages)


def mixed(case: Case, queries: list[Tensor], k_pages, v_pages, rows: list[Tensor]) -> Tensor:
    """A loop over single queries, in float64."""
    keys, values = (_numbers(pages).flatten(0, 1) for pages in (k_pages, v_pages))
    out = []
    for (new, old), q, row in zip(case.sequences, queries, rows, strict=True):
        for i in range(new):
            seen = row[0 if case.window is None else max(0, old + i + 1 - case.window) : old + i + 1]
            out.append(one_query(q[i].double(), keys[seen], values[seen], case.dim**-0.5, case.softcap))
    return torch.stack(out)


def test_the_transform_spreads_what_sticks_out(backend, device, random) -> None:
    """One large feature among small ones: without the transform, four bits would leave nothing of the others."""
    x = torch.randn(64, 1, 32, generator=random)
    x[..., 7] = 40
    pages = new_pages((1, 64, 1, 32), 4, torch.float32, device)
    backend.write_kv(x.to(device), x.to(device), pages, pages, torch.arange(64, device=device))
    error = (unpacked(pages)[0] - x).square().mean().sqrt()
    assert error < 0.5 < math.sqrt(1 / 3)  # a step of 40 / 8 rounds all of N(0, 1) to zero: an error of one


class TestSizes:
    @pytest.mark.parametrize(("name", "bits"), [("q4", 4.5), ("q6", 6.5), ("q8", 8.5), ("k8v4", 6.5), ("fp16", 16)])
    def test_bits_a_number(self, name, bits) -> None:
        kind, shape = read_bits(name), (2, 256, 8, 128)
        held = [tensor for side in (kind.k, kind.v) for tensor in tensors_of(new_pages(shape, side, torch.half, CPU))]
        numbers = 2 * math.prod(shape)
        assert 8 * sum(tensor.nbytes for tensor in held) / numbers == bits
        assert sum(row_bytes(128, side, torch.half) for side in (kind.k, kind.v)) * 8 / 256 == bits

    def test_names(self) -> None:
        assert read_bits("fp16") == read_bits("k16v16") == FULL
        assert str(read_bits("k8v4")) == "q6"
        assert str(read_bits("k4v8")) == "k4v8"

    @pytest.mark.parametrize("text", ["", "q5", "k4", "k4v5", "Q4", "8"])
    def test_others_are_refused(self, text) -> None:
        with pytest.raises(ConfigError, match=r"expected fp16, q8, q6, q4, or 4, 8 or 16 bits"):
            read_bits(text)

    def test_heads_that_cannot_be_cut_into_groups_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"heads of 24 features cannot be quantized .* load with cache='fp16'"):
            new_pages((1, 4, 1, 24), 4, torch.half, CPU)
