"""A product that norms and sorts its one row in every thread block, on a card, and when a launch before does that."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from kernels.test_matmul import random_exl2
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels import reference

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.kernels.cuda import decode, streamed
from polybit.kernels.cuda.streamed import Streamed

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
GROUPS = {
    576: [(8, 32), (6, 64), (5, 32), (4, 96), (3, 64), (2, 288)],
    1376: [(5, 96), (3, 1280)],
    2080: [(8, 32), (6, 32), (2, 2016)],
}
KINDS = [torch.float16, torch.bfloat16, torch.float32]
EPS, OFFSET = 1e-6, 1.0


@pytest.fixture
def rows_sorted(monkeypatch) -> list[Tensor]:
    """The rows that thread blocks sorted for themselves."""
    seen, multiply = [], decode._norm_multiply_row

    def watched(form: decode.Form, x: Tensor, *others: object) -> Tensor:
        seen.append(x)
        return multiply(form, x, *others)

    monkeypatch.setattr(decode, "_norm_multiply_row", watched)
    return seen


def made(
    width: int, random: torch.Generator, orders: int = 1, kind: torch.dtype = torch.float16
) -> tuple[list[Exl2Tensor], Streamed]:
    tensors = [random_exl2(GROUPS[width], columns, random) for columns in (96, 224, 32)]
    tensors = [replace(tensor, q_invperm=tensors[i % orders].q_invperm) for i, tensor in enumerate(tensors)]
    return tensors, streamed.join([streamed.prepare(tensor, 1.0, DEVICE, kind) for tensor in tensors])


def expected(x: Tensor, weight: Tensor, tensors: list[Exl2Tensor]) -> Tensor:
    normed = reference.rms_norm(x.cpu().double(), weight.cpu().double(), EPS, OFFSET)
    return normed @ torch.cat([exl2.dequantize(tensor) for tensor in tensors], dim=1).double()


@pytest.mark.parametrize("width", GROUPS)
@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("orders", [1, 2, 3])
def test_rows_of_every_type(random, rows_sorted, width, kind, given, weights, orders) -> None:
    tensors, matrix = made(width, random, orders, kind)
    x = (torch.randn(1, width, generator=random) * 30).to(given)
    weight = torch.rand(width, generator=random).to(weights)
    product = decode.norm_multiply(x.to(DEVICE), weight.to(DEVICE), EPS, OFFSET, matrix)
    assert len(rows_sorted) == 1
    assert product.dtype == kind
    assert_close(product, expected(x, weight, tensors), "matmul")


@pytest.mark.parametrize("width", GROUPS)
def test_a_row_of_zeros(random, rows_sorted, width) -> None:
    _, matrix = made(width, random)
    x, weight = torch.zeros(1, width, device=DEVICE), torch.ones(width, device=DEVICE)
    assert not decode.norm_multiply(x, weight, EPS, OFFSET, matrix).any()
    assert len(rows_sorted) == 1


def test_the_same_bits_every_time(random, rows_sorted) -> None:
    _, matrix = made(2080, random, orders=3)
    x, weight = torch.randn(1, 2080, generator=random).to(DEVICE), torch.rand(2080, generator=random).to(DEVICE)
    first, *others = (decode.norm_multiply(x, weight, EPS, OFFSET, matrix) for _ in range(4))
    assert len(rows_sorted) == 4
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("width", GROUPS)
def test_one_after_another_each_on_what_the_one_before_gave(random, rows_sorted, width) -> None:
    """The second may start before the first has ended."""
    square = random_exl2(GROUPS[width], width, random)
    matrix, dense = streamed.prepare(square, 1.0, DEVICE, torch.float16), exl2.dequantize(square).double()
    weight = torch.rand(width, generator=random)
    right = torch.randn(1, width, generator=random).double()
    x, on_card = right.float().to(DEVICE), weight.to(DEVICE)
    for _ in range(3):
        x = decode.norm_multiply(x, on_card, EPS, OFFSET, matrix)
        right = reference.rms_norm(right, weight.double(), EPS, OFFSET) @ dense
    assert len(rows_sorted) == 3
    assert_close(x, right, "matmul")


@pytest.mark.parametrize("width", GROUPS)
def test_a_row_too_long_for_shared_memory_is_sorted_before(random, rows_sorted, monkeypatch, width) -> None:
    monkeypatch.setattr(decode, "shared_memory", lambda _: 64 << 10)
    tensors, matrix = made(width, random)
    x, weight = torch.randn(1, width, generator=random), torch.rand(width, generator=random)
    product = decode.norm_multiply(x.to(DEVICE), weight.to(DEVICE), EPS, OFFSET, matrix)
    assert not rows_sorted
    assert_close(product, expected(x, weight, tensors), "matmul")


@pytest.mark.parametrize("starts", [(1, 0), (0, 1)], ids=["row", "weight"])
def test_what_begins_anywhere_is_sorted_before(random, rows_sorted, starts) -> None:
    tensors, matrix = made(576, random)
    x, weight = torch.randn(1, 577, generator=random).to(DEVICE), torch.rand(577, generator=random).to(DEVICE)
    x, weight = x[:, starts[0] : starts[0] + 576], weight[starts[1] : starts[1] + 576]
    product = decode.norm_multiply(x, weight, EPS, OFFSET, matrix)
    assert not rows_sorted
    assert_close(product, expected(x, weight, tensors), "matmul")


def test_several_rows_are_sorted_before(random, rows_sorted) -> None:
    tensors, matrix = made(576, random)
    x, weight = torch.randn(2, 576, generator=random), torch.rand(576, generator=random)
    product = decode.norm_multiply(x.to(DEVICE), weight.to(DEVICE), EPS, OFFSET, matrix)
    assert not rows_sorted
    assert_close(product, expected(x, weight, tensors), "matmul")
