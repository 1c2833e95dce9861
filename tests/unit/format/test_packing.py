import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polybit.format.packing import WIDTHS, pack_codes, pack_rows, unpack_codes, unpack_rows

sizes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32))


@pytest.mark.parametrize("bits", WIDTHS)
@given(size=sizes)
def test_unpacking_inverts_packing(bits: int, size: tuple[int, int, int]) -> None:
    blocks, columns, seed = size
    random = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (32 * blocks, columns), generator=random)
    words = pack_rows(q, bits)
    assert words.shape == (blocks * bits, columns)
    assert torch.equal(unpack_rows(words, bits), q.to(torch.uint8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_word_means_something_and_packs_back(bits: int) -> None:
    words = torch.randint(-(2**31), 2**31, (3 * bits, 5), dtype=torch.int32)
    assert torch.equal(pack_rows(unpack_rows(words, bits), bits), words)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_any_integer_type_and_any_strides_pack_alike(dtype: torch.dtype) -> None:
    q = torch.randint(0, 32, (7, 64))
    assert torch.equal(pack_rows(q.T.to(dtype), 5), pack_rows(q.T.contiguous(), 5))


@given(size=sizes)
def test_codes_survive(size: tuple[int, int, int]) -> None:
    groups, words, seed = size
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (groups, 8 * words), generator=random)
    packed = pack_codes(codes)
    assert packed.shape == (groups, words)
    assert torch.equal(unpack_codes(packed), codes.to(torch.uint8))
