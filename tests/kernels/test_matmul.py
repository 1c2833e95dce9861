"""Products with dense and quantized matrices; quantized ones are compared through the format's own dequantization."""

import pytest
import torch

from closeness import assert_close
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor, Group, Layout
from polybit.kernels.reference import matrices

MIXES = {
    "2": [(2, 64), (2, 32)],
    "3": [(3, 96)],
    "4+3": [(4, 32), (3, 64), (3, 32)],
    "8+6+5+4+3+2": [(8, 32), (6, 32), (5, 32), (4, 32), (3, 64), (2, 32)],
}


def random_exl2(groups: list[tuple[int, int]], num_columns: int, random: torch.Generator) -> Exl2Tensor:
    layout = Layout(tuple(Group(bits, rows) for bits, rows in groups))
    q = torch.cat([torch.randint(0, 2**bits, (rows, num_columns), generator=random) for bits, rows in groups])
    codes = torch.randint(0, 16, (len(groups), num_columns), generator=random)
    scale_max = (torch.rand(len(groups), generator=random) * 0.1).half()
    return exl2.encode(q, codes, scale_max, layout, torch.randperm(layout.in_features, generator=random))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("unpacked", [False, True])
def test_exl2_matmul(backend, device, dtype, random, rows, groups, unpacked) -> None:
    tensor = random_exl2(groups, 64, random)
    matrix = backend.prepare_exl2(tensor, 1.0, device, dtype, unpacked)
    x = torch.randn(rows, tensor.in_features, generator=random).to(device, dtype)
    expected = exl2.dequantize(tensor)
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ expected.double(), "matmul")
    assert torch.equal(backend.dequantize(matrix).cpu(), expected.to(dtype))


def test_prescale_follows_the_formats_rounding(backend, device, random) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    matrix = backend.prepare_exl2(tensor, 0.3, device, torch.float32, False)
    assert torch.equal(backend.dequantize(matrix).cpu(), exl2.dequantize(tensor, 0.3).float())


def test_packed_matrices_stay_small(backend, device, random) -> None:
    tensor = random_exl2(MIXES["2"], 256, random)
    packed = backend.prepare_exl2(tensor, 1.0, device, torch.float32, False)
    unpacked = backend.prepare_exl2(tensor, 1.0, device, torch.float32, True)
    assert packed.num_bytes < unpacked.num_bytes / 8
    assert (packed.in_features, packed.out_features) == (unpacked.in_features, unpacked.out_features) == (96, 256)


def test_wide_matrices_are_dequantized_in_parts(backend, device, random, monkeypatch) -> None:
    monkeypatch.setattr(matrices, "MAX_WORK_WEIGHTS", 96 * 64)
    tensor = random_exl2(MIXES["4+3"], 160, random)
    x = torch.randn(2, tensor.in_features, generator=random).to(device)
    product = backend.matmul(x, backend.prepare_exl2(tensor, 1.0, device, torch.float32, False))
    assert_close(product, x.cpu().double() @ exl2.dequantize(tensor).double(), "matmul")


def test_dense_matmul(backend, device, dtype, random) -> None:
    weight = torch.randn(33, 48, generator=random)
    x = torch.randn(3, 48, generator=random).to(device, dtype)
    matrix = backend.prepare_dense(weight, device, dtype)
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ weight.to(dtype).double().T, "matmul")
