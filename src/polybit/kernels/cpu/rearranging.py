"""Words of a file brought into the order of tiles: bits moved as a table says, for all columns alike."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Words = NDArray[np.uint32]


@njit(cache=True, error_model="numpy", nogil=True)
def rearrange(words: Words, bits: int, moves: Words, first_row: int, out: Words) -> None:
    """words [R, N], blocks of `bits` rows -> rows from `first_row` on of out [tiles, rows, TILE].

    moves [M, 5]: source row in a block, bits to drop below, mask, bits to leave below, target row.
    """
    tile_columns = out.shape[2]
    for block in range(0, words.shape[0], bits):
        for tile in range(out.shape[0]):
            start = tile * tile_columns
            width = min(tile_columns, words.shape[1] - start)
            first = first_row + block
            for row in range(bits):
                for n in range(tile_columns):
                    out[tile, first + row, n] = 0
            for i in range(len(moves)):
                source, down, up, target = block + moves[i, 0], moves[i, 1] & 31, moves[i, 3] & 31, first + moves[i, 4]
                mask = moves[i, 2]
                for n in range(width):
                    moved = ((words[source, start + n] >> down) & mask) << up
                    out[tile, target, n] |= np.uint32(moved)
