"""Products with dense and quantized matrices; quantized ones are compared through the format's own dequantization."""

import pytest
import torch

from closeness import assert_close
from polybit.format import exl2, gptq
from polybit.format.exl2 import Exl2Tensor, Group, Layout
from polybit.format.gptq import GptqTensor
from polybit.format.packing import pack_codes
from polybit.kernels.reference import matrices

MIXES = {
    "2, tall": [(2, 416)],
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


@pytest.mark.parametrize("rows", [1, 33, 70])
@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("unpacked", [False, True])
def test_exl2_matmul(backend, device, dtype, random, rows, groups, unpacked) -> None:
    tensor = random_exl2(groups, 160, random)
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


@pytest.mark.parametrize("rows", [2, 70])
def test_wide_matrices_are_dequantized_in_parts(backend, device, random, monkeypatch, rows) -> None:
    monkeypatch.setattr(matrices, "MAX_WORK_WEIGHTS", 96 * 64)
    tensor = random_exl2(MIXES["4+3"], 160, random)
    x = torch.randn(rows, tensor.in_features, generator=random).to(device)
    product = backend.matmul(x, backend.prepare_exl2(tensor, 1.0, device, torch.float32, False))
    assert_close(product, x.cpu().double() @ exl2.dequantize(tensor).double(), "matmul")


def test_every_code_and_subnormal_scales_dequantize_exactly(backend, device, random) -> None:
    """All codes of all widths, at scales down to where float16 has few bits left."""
    groups = [(bits, 256) for bits in (8, 6, 5, 4, 3, 2)]
    q = torch.cat([torch.arange(256)[:, None].expand(256, 32) % 2**bits for bits, _ in groups])
    codes = (torch.arange(32) % 16).expand(len(groups), 32)
    for scale_max in (1.0, 0.0007, 6e-8):
        maxima = torch.full((len(groups),), scale_max, dtype=torch.float16)
        layout = Layout(tuple(Group(bits, rows) for bits, rows in groups))
        tensor = exl2.encode(q, codes, maxima, layout, torch.randperm(layout.in_features, generator=random))
        matrix = backend.prepare_exl2(tensor, 1.0, device, torch.float16, False)
        assert torch.equal(backend.dequantize(matrix).cpu(), exl2.dequantize(tensor))


def random_gptq(in_features: int, size: int, ordered: bool, offset: int, random: torch.Generator) -> GptqTensor:
    """Groups of `size` rows, one after another or with rows of all groups mixed."""
    num_groups = -(-in_features // size)
    q = torch.randint(0, 16, (in_features, 72), generator=random)
    groups = torch.arange(in_features) // size
    return GptqTensor(
        qweight=pack_codes(q.T).T.contiguous(),
        qzeros=pack_codes(torch.randint(0, 16, (num_groups, 72), generator=random)),
        scales=(torch.rand(num_groups, 72, generator=random) * 0.1).half(),
        g_idx=None if ordered else groups[torch.randperm(in_features, generator=random)],
        bias=None,
        zero_offset=offset,
    )


@pytest.mark.parametrize("rows", [1, 20, 65])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("in_features", "size", "offset"), [(256, 128, 1), (96, 16, 0), (200, 64, 1)])
def test_gptq_matmul(backend, device, dtype, random, rows, ordered, in_features, size, offset) -> None:
    tensor = random_gptq(in_features, size, ordered, offset, random)
    matrix = backend.prepare_gptq(tensor, 0.7, device, dtype, False)
    x = torch.randn(rows, in_features, generator=random).to(device, dtype)
    expected = gptq.dequantize(tensor, 0.7)
    assert torch.equal(backend.dequantize(matrix).cpu(), expected.to(dtype))
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ expected.double(), "matmul")


def test_products_give_the_same_bits_every_time(backend, device, random) -> None:
    tensor = random_exl2([(4, 256), (3, 256)], 160, random)
    matrix = backend.prepare_exl2(tensor, 1.0, device, torch.float16, False)
    x = torch.randn(3, 512, generator=random).to(device, torch.float16)
    first, *others = (backend.matmul(x, matrix) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def test_bfloat16(backend, device, random) -> None:
    tensor = random_exl2(MIXES["8+6+5+4+3+2"], 64, random)
    x = torch.randn(5, tensor.in_features, generator=random).to(device, torch.bfloat16)
    expected = exl2.dequantize(tensor).bfloat16()
    matrix = backend.prepare_exl2(tensor, 1.0, device, torch.bfloat16, False)
    assert torch.equal(backend.dequantize(matrix).cpu(), expected)
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ expected.double(), "matmul")


def test_rows_of_a_wider_matrix_are_multiplied(backend, device, random) -> None:
    tensor = random_exl2(MIXES["4+3"], 64, random)
    wide = torch.randn(3, 200, generator=random).to(device)
    matrix = backend.prepare_exl2(tensor, 1.0, device, torch.float32, False)
    product = backend.matmul(wide[:, :128], matrix)
    assert_close(product, wide[:, :128].cpu().double() @ exl2.dequantize(tensor).double(), "matmul")


def test_dense_matmul(backend, device, dtype, random) -> None:
    weight = torch.randn(33, 48, generator=random)
    x = torch.randn(3, 48, generator=random).to(device, dtype)
    matrix = backend.prepare_dense(weight, device, dtype)
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ weight.to(dtype).double().T, "matmul")
