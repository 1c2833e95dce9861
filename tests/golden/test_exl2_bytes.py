"""Words and halves worked out outside this code base: what EXL2 files hold, and what they mean."""

import numpy as np
import pytest
import torch

from polybit.format.exl2 import group_scales, pack_codes, pack_rows, unpack_codes, unpack_rows

# One column of 32 rows, q[i] = (5 i + 3) mod 2^bits, packed row 0 first.
WORDS = {
    2: "93939393 93939393",
    3: "43c67543 7543c675 c67543c6",
    4: "61c72d83 e94fa50b 61c72d83 e94fa50b",
    5: "79793503 fd560b30 77137249 1bb45871 f668f514",
    6: "1748d203 5c2b9a17 38913feb 2789d613 503bdb1b 79950f28",
    8: "120d0803 26211c17 3a35302b 4e49443f 625d5853 76716c67 8a85807b 9e99948f",
}

# q_scale_max, scale code -> scale, all as bit patterns of binary16.
SCALES = [
    (0x3800, 0, 0x1800),
    (0x3800, 7, 0x3000),
    (0x3800, 15, 0x3800),
    (0x212C, 0, 0x0296),  # the maximum over 256 is subnormal
    (0x212C, 7, 0x192C),
    (0x212C, 15, 0x212C),
    (0x11BC, 0, 0x002E),  # and here it has lost bits: the largest code does not give the maximum back
    (0x11BC, 15, 0x11C0),
]


def words(text: str) -> torch.Tensor:
    """[R, 1] int32"""
    return torch.from_numpy(np.array([int(word, 16) for word in text.split()], dtype=np.uint32).view(np.int32))[:, None]


def half(bits: int) -> torch.Tensor:
    return torch.from_numpy(np.array([bits], dtype=np.uint16).view(np.float16))


@pytest.mark.parametrize("bits", WORDS)
def test_rows_pack_into_known_words(bits: int) -> None:
    q = ((5 * torch.arange(32) + 3) % 2**bits)[:, None]
    assert torch.equal(pack_rows(q, bits), words(WORDS[bits]))
    assert torch.equal(unpack_rows(words(WORDS[bits]), bits), q.to(torch.uint8))


def test_lowest_column_has_the_lowest_nibble() -> None:
    codes = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]])
    assert torch.equal(pack_codes(codes), words("76543210 fedcba98"))
    assert torch.equal(unpack_codes(words("76543210 fedcba98")), codes.to(torch.uint8))


@pytest.mark.parametrize(("scale_max", "code", "expected"), SCALES)
def test_scales_round_as_the_original_does(scale_max: int, code: int, expected: int) -> None:
    scale = group_scales(torch.tensor([[code]]), half(scale_max))
    assert scale.numpy().view(np.uint16).item() == expected
