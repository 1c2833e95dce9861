"""Products of few rows on a card whose thread blocks share tiles: how they add up their parts."""

import math

import pytest
import torch

from closeness import assert_close
from kernels.test_matmul import random_exl2
from polybit.format import exl2

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.kernels.cuda import decode, matrices, streamed
from polybit.kernels.cuda.stream import TILE_COLUMNS
from polybit.kernels.cuda.streamed import Streamed
from polybit.kernels.cuda.workspace import workspace

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
GROUPS = [(4, 128)] * 16
TILES = {"two parts": 3 / 2, "several parts": 1 / 3}  # for each multiprocessor


@pytest.fixture(params=TILES.values(), ids=TILES.keys())
def num_columns(request: pytest.FixtureRequest) -> int:
    return TILE_COLUMNS * int(num_processors() * request.param)


def num_processors() -> int:
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


def most_parts(matrix: Streamed, rows: int) -> int:
    """Of a tile, among thread blocks."""
    given = matrix.input
    plan = decode._plan(decode.form_for(rows), matrix.shapes, given.row_blocks, given.first_groups, DEVICE)
    return int((plan.tiles[..., 3] & 0xFF).max())


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_parts_of_a_tile_are_added_in_one_order(random, num_columns, rows) -> None:
    tensor = random_exl2(GROUPS, num_columns, random)
    matrix = streamed.prepare(tensor, 1.0, DEVICE, torch.float16)
    assert (most_parts(matrix, rows) == 2) == (num_columns > TILE_COLUMNS * num_processors())
    x = torch.randn(rows, tensor.in_features, generator=random).half()
    residual = torch.randn(rows, num_columns, generator=random).to(DEVICE)
    products = [decode.multiply(x.to(DEVICE), matrix, residual) for _ in range(8)]
    assert_close(products[0].half(), x.double() @ exl2.dequantize(tensor).double() + residual.cpu(), "matmul")
    assert all(torch.equal(product, products[0]) for product in products)


def test_what_is_no_number_goes_no_further_than_its_row(random, num_columns) -> None:
    tensor = random_exl2(GROUPS, num_columns, random)
    matrix = streamed.prepare(tensor, 1.0, DEVICE, torch.float16)
    x = torch.randn(3, tensor.in_features, generator=random).half()
    right = x.double() @ exl2.dequantize(tensor).double()
    broken = x.clone()
    broken[1] = math.nan
    found = matrices.matmul(broken.to(DEVICE), matrix)
    assert found[1].isnan().all()
    assert_close(found[::2], right[::2], "matmul")
    assert_close(matrices.matmul(x.to(DEVICE), matrix), right, "matmul")
    assert not workspace(DEVICE).exchanges.any()
