"""How prompts' products are cut into pieces of columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.kernels.cuda.prompt import WORK_WEIGHTS, Columns, piece_columns, pieces


@given(st.lists(st.integers(1, 40).map(lambda n: 8 * n), min_size=1, max_size=5), st.integers(64, 500))
def test_pieces_are_all_columns_in_their_order(widths, most) -> None:
    found = pieces(tuple(widths), most)
    assert [(part.matrix, column) for piece in found for part in piece for column in range(part.start, part.stop)] == [
        (matrix, column) for matrix, width in enumerate(widths) for column in range(width)
    ]
    assert all(0 < sum(part.stop - part.start for part in piece) <= most for piece in found)
    assert all(part.start % 64 == 0 for piece in found for part in piece)


def test_narrow_neighbours_share_a_piece() -> None:
    assert pieces((256, 64, 64), 320) == ((Columns(0, 0, 256), Columns(1, 0, 64)), (Columns(2, 0, 64),))


@pytest.mark.parametrize(
    ("in_features", "num_tokens", "columns"),
    [
        (8192, 2048, 6144),  # three times 16 x 8 tiles, for 132 multiprocessors
        (28672, 2048, 2048),
        (8192, 4096, 7168),
        (8192, 512, 7168),  # not even one wave fits
        (28672, 100_000, 2048),  # many waves, however wide
        (1 << 20, 2048, 64),
        (1 << 22, 2048, 64),  # never less than a tile
    ],
)
def test_a_piece_is_whole_waves_where_they_fit(in_features, num_tokens, columns) -> None:
    assert piece_columns(in_features, num_tokens, 132) == columns
    assert columns * in_features <= WORK_WEIGHTS or columns == 64
