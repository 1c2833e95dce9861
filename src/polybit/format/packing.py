"""Packing of small unsigned integers into 32-bit words, as EXL2 files hold them. Pure functions, tensors of any device.

Each column is a bit stream of its own, least significant bit first: local row i holds stream bits
[i * bits, (i + 1) * bits), and packed row w holds stream bits [32 * w, 32 * w + 32). Thus 32 rows always make exactly
`bits` packed rows, and blocks of 32 rows are independent of each other. Words are int32 whose bit pattern counts: a
shift to the right carries the sign down from above, so every use of one is masked.
"""

import torch
from torch import Tensor

WIDTHS = (2, 3, 4, 5, 6, 8)
BLOCK_ROWS = 32  # rows that make a whole number of words at every width
CODE_BITS = 4
CODES_PER_WORD = 32 // CODE_BITS


def pack_rows(q: Tensor, bits: int) -> Tensor:
    """q [rows, N] of any integer type, values in [0, 2^bits) -> [rows * bits / 32, N] int32; rows a multiple of 32."""
    blocks = q.to(torch.int32).reshape(-1, BLOCK_ROWS, q.shape[1])  # [B, 32, N]
    words = torch.zeros(blocks.shape[0], bits, q.shape[1], dtype=torch.int32, device=q.device)
    for row in range(BLOCK_ROWS):
        word, shift, spill = _place(row, bits)
        words[:, word] |= blocks[:, row] << shift
        if spill > 0:
            words[:, word + 1] |= blocks[:, row] >> (bits - spill)
    return words.flatten(0, 1)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """words [R, N] int32 with R a multiple of `bits` -> [R * 32 / bits, N] uint8."""
    blocks = words.reshape(-1, bits, words.shape[1])  # [B, bits, N]
    q = torch.empty(blocks.shape[0], BLOCK_ROWS, words.shape[1], dtype=torch.uint8, device=words.device)
    for row in range(BLOCK_ROWS):
        word, shift, spill = _place(row, bits)
        value = blocks[:, word] >> shift
        if spill > 0:
            kept = bits - spill
            value = (value & _mask(kept)) | (blocks[:, word + 1] << kept)
        q[:, row] = value & _mask(bits)
    return q.flatten(0, 1)


def pack_codes(codes: Tensor) -> Tensor:
    """codes [G, N] in 0..15 -> [G, N / 8] int32, the lowest column in the lowest four bits; N a multiple of 8."""
    nibbles = codes.to(torch.int32).reshape(*codes.shape[:-1], -1, CODES_PER_WORD)
    words = torch.zeros(nibbles.shape[:-1], dtype=torch.int32, device=codes.device)
    for column in range(CODES_PER_WORD):
        words |= nibbles[..., column] << (CODE_BITS * column)
    return words


def unpack_codes(words: Tensor) -> Tensor:
    """words [G, N / 8] int32 -> [G, N] uint8."""
    shifts = torch.arange(0, 32, CODE_BITS, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & _mask(CODE_BITS)).flatten(-2).to(torch.uint8)


def _place(row: int, bits: int) -> tuple[int, int, int]:
    """Word and bit at which a block's row starts, and how many of its bits spill into the next word (<= 0: none)."""
    word, shift = divmod(row * bits, 32)
    return word, shift, shift + bits - 32


def _mask(bits: int) -> int:
    return (1 << bits) - 1
