import math

import pytest
import torch

from closeness import assert_close
from polybit.cache import PAGE_TOKENS, Copy, KVPool
from polybit.errors import OutOfMemory
from polybit.kernels import reference
from polybit.kernels.pages import FULL, KVBits, tensors_of
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import QuantizedScratch, Step, whole_rows
from random_model import write_random_model

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path):
    return open_model(write_random_model(tmp_path), LoadOptions(device="cpu", backend="reference"))  # as the pools


def test_size_is_rounded_up_to_pages_and_reported(source):
    pool = KVPool(source.spec, PAGE_TOKENS + 1, torch.float16, CPU, reference)
    per_token = sum(2 * block.attn.num_kv_heads * block.attn.head_dim for block in source.spec.blocks) * 2
    assert pool.num_tokens == 2 * PAGE_TOKENS
    assert pool.num_bytes == 3 * PAGE_TOKENS * per_token


def test_the_spare_page_is_there_and_nobodys(source):
    pool = KVPool(source.spec, 3 * PAGE_TOKENS, torch.float16, CPU, reference)
    assert pool.pages(0)[0].shape[0] == pool.spare_page + 1
    assert pool.spare_page not in pool.book.take(3)
    assert pool.book.num_free == 0


def test_what_is_written_is_read(source):
    pool = KVPool(source.spec, 2 * PAGE_TOKENS, torch.float32, CPU, reference)
    shape = (3, source.spec.blocks[1].attn.num_kv_heads, source.spec.blocks[1].attn.head_dim)
    k, v = torch.randn(shape), torch.randn(shape)
    slots = torch.tensor([5, PAGE_TOKENS, 0])
    empty = torch.zeros(0, dtype=torch.int32)
    pool.write(1, k, v, Step(empty, slots, empty, empty, empty, max_queries=3, max_length=3))
    keys, values = pool.pages(1)
    for i, (page, offset) in enumerate([(0, 5), (1, 0), (0, 0)]):
        assert torch.equal(keys[page, offset], k[i])
        assert torch.equal(values[page, offset], v[i])


@pytest.mark.parametrize("bits", [FULL, KVBits(8, 4), KVBits(4, 16)], ids=str)
def test_copies_take_what_was_there_before_any_of_them(source, bits):
    pool = KVPool(source.spec, 3 * PAGE_TOKENS, torch.float32, CPU, reference, bits)
    for layer in range(2):
        for part, tensor in enumerate(tensors(pool, layer)):
            for page in range(3):
                tensor[page].fill_(100 * layer + 10 * part + page)
    pool.copy([Copy(0, 1), Copy(1, 2)])
    for layer in range(2):
        for part, tensor in enumerate(tensors(pool, layer)):
            first = 100 * layer + 10 * part
            assert [tensor[page].unique().tolist() for page in range(3)] == [[first], [first], [first + 1]]


def tensors(pool, layer):
    return [tensor for pages in pool.pages(layer) for tensor in tensors_of(pages)]


def test_a_quantized_pool_counts_its_scales(source):
    pool = KVPool(source.spec, PAGE_TOKENS, torch.float32, CPU, reference, KVBits(8, 4))
    numbers = 2 * PAGE_TOKENS * sum(block.attn.num_kv_heads * block.attn.head_dim for block in source.spec.blocks)
    assert pool.num_bytes == numbers * (8 + 4 + 2 * 16 / 16) / 8


@pytest.mark.parametrize("bits", [FULL, KVBits(4, 8)], ids=str)
def test_chunks_through_scattered_pages_give_the_logits_of_one_pass(source, bits):
    model, length = load(source), PAGE_TOKENS + 40
    tokens = torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(0))
    step, scratch = whole_rows(1, length, CPU)
    expected = model.forward(
        tokens, step, scratch if bits == FULL else QuantizedScratch(1, length, bits, model.backend)
    )
    pool = KVPool(source.spec, 4 * PAGE_TOKENS, torch.float32, CPU, reference, bits)
    for layer in range(2):
        for tensor in tensors(pool, layer):
            if tensor.is_floating_point():
                tensor.fill_(math.nan)  # what nobody wrote must not matter
    table = torch.tensor([3, 1])
    found = []
    for start, stop in [(0, 100), (100, 101), (101, length)]:
        positions = torch.arange(start, stop)
        slots = table[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
        step = Step(
            positions=positions,
            slots=slots,
            page_table=table[None].int(),
            query_starts=torch.tensor([0, stop - start], dtype=torch.int32),
            lengths=torch.tensor([stop], dtype=torch.int32),
            max_queries=stop - start,
            max_length=stop,
        )
        found.append(model.forward(tokens[start:stop], step, pool))
    assert_close(torch.cat(found), expected, "model")


def test_a_pool_that_does_not_fit_says_how_large_it_is(source):
    with pytest.raises(OutOfMemory, match=r"tokens needs .* GiB on cpu .*; load with a smaller --cache-tokens"):
        KVPool(source.spec, 1 << 50, torch.float32, CPU, reference)
