"""Products with dense and quantized matrices; quantized ones are compared through the format's own dequantization."""

from dataclasses import replace

import pytest
import torch

from closeness import assert_close
from polybit.format import exl2, gptq
from polybit.format.exl2 import Exl2Tensor, Group, Layout
from polybit.format.gptq import GptqTensor
from polybit.format.packing import pack_codes
from polybit.kernels import reference
from polybit.kernels.protocol import Backend
from polybit.kernels.reference import matrices
from polybit.spec import Activation

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


def product_of(backend: Backend) -> str:
    """The op of an EXL2 product in the table of tolerances."""
    return "integer matmul" if backend.NAME == "cpu" else "matmul"


@pytest.mark.parametrize("rows", [1, 12, 33, 70])
@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("unpacked", [False, True])
def test_exl2_matmul(backend, device, dtype, random, rows, groups, unpacked) -> None:
    tensor = random_exl2(groups, 160, random)
    matrix = backend.prepare_exl2(tensor, 1.0, device, dtype, unpacked)
    x = torch.randn(rows, tensor.in_features, generator=random).to(device, dtype)
    expected = exl2.dequantize(tensor)
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ expected.double(), product_of(backend))
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


@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
def test_a_plan_knows_what_a_packed_matrix_takes(backend, device, dtype, random, groups) -> None:
    tensor = random_exl2(groups, 160, random)
    packed = backend.prepare_exl2(tensor, 1.0, device, dtype, False)
    assert backend.exl2_bytes(tensor.layout, tensor.out_features, dtype) == packed.num_bytes


@pytest.mark.parametrize("rows", [2, 70])
def test_wide_matrices_are_dequantized_in_parts(backend, device, random, monkeypatch, rows) -> None:
    monkeypatch.setattr(matrices, "MAX_WORK_WEIGHTS", 96 * 64)
    tensor = random_exl2(MIXES["4+3"], 160, random)
    x = torch.randn(rows, tensor.in_features, generator=random).to(device)
    product = backend.matmul(x, backend.prepare_exl2(tensor, 1.0, device, torch.float32, False))
    assert_close(product, x.cpu().double() @ exl2.dequantize(tensor).double(), product_of(backend))


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
    assert_close(product, wide[:, :128].cpu().double() @ exl2.dequantize(tensor).double(), product_of(backend))


@pytest.mark.parametrize("rows", [3, 20, 71])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [[(4, 576)], [(5, 96), (3, 1280)], [(8, 32), (6, 32), (2, 2016)]], ids=str)
def test_awkward_sizes(backend, device, random, rows, kind, groups) -> None:
    tensor = random_exl2(groups, 224, random)
    matrix = backend.prepare_exl2(tensor, 1.0, device, kind, False)
    expected = exl2.dequantize(tensor).to(kind)
    x = torch.randn(rows, tensor.in_features + 1, generator=random).to(kind)[:, 1:]  # rows that begin anywhere
    assert torch.equal(backend.dequantize(matrix).cpu(), expected)
    assert_close(backend.matmul(x.to(device), matrix), x.double() @ expected.double(), "matmul")


def test_dense_matmul(backend, device, dtype, random) -> None:
    weight = torch.randn(33, 48, generator=random)
    x = torch.randn(3, 48, generator=random).to(device, dtype)
    matrix = backend.prepare_dense(weight, device, dtype)
    assert_close(backend.matmul(x, matrix), x.cpu().double() @ weight.to(dtype).double().T, "matmul")


@pytest.mark.parametrize("rows", [1, 5, 16, 70])
@pytest.mark.parametrize("groups", [MIXES["2"], MIXES["8+6+5+4+3+2"]], ids=["2", "8+6+5+4+3+2"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_norm_before_the_product(backend, device, random, rows, groups, kind) -> None:
    tensor = random_exl2(groups, 96, random)
    matrix = backend.prepare_exl2(tensor, 1.0, device, kind, False)
    x = torch.randn(rows, tensor.in_features, generator=random) * torch.logspace(-3, 3, rows)[:, None]
    weight = torch.rand(tensor.in_features, generator=random).to(kind)
    normed = reference.rms_norm(x.double(), weight.double(), 1e-6, 1.0)
    product = backend.norm_matmul(x.to(device), weight.to(device), 1e-6, 1.0, matrix)
    assert product.dtype == kind
    assert_close(product, normed @ exl2.dequantize(tensor).double(), product_of(backend))


@pytest.mark.parametrize("rows", [1, 5, 16, 70])
@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("has_residual", [False, True])
def test_gate_before_the_product(backend, device, random, rows, activation, has_residual) -> None:
    tensor = random_exl2(MIXES["4+3"], 96, random)
    matrix = backend.prepare_exl2(tensor, 1.0, device, torch.float16, False)
    both = torch.randn(rows, 2 * tensor.in_features, generator=random).half()
    gate, up = both.to(device).chunk(2, dim=1)  # rows of a wider matrix, as a joint product leaves them
    residual = torch.randn(rows, 96, generator=random) if has_residual else None
    gated = reference.gated_activate(*both.double().chunk(2, dim=1), activation)
    expected = gated @ exl2.dequantize(tensor).double() + (0 if residual is None else residual.double())
    given = None if residual is None else residual.to(device)
    product = backend.gated_matmul(gate, up, activation, matrix, given)
    assert product.dtype == (torch.float32 if has_residual else torch.float16)
    assert_close(product.half(), expected, "matmul")


@pytest.mark.parametrize("rows", [1, 7, 70])
@pytest.mark.parametrize("same_order", [False, True])
def test_joined_matrices_of_different_layouts(backend, device, random, rows, same_order) -> None:
    tensors = [random_exl2(groups, width, random) for groups, width in
               ((MIXES["8+6+5+4+3+2"], 96), ([(4, 128), (2, 96)], 32), (MIXES["8+6+5+4+3+2"], 160))]  # fmt: skip
    if same_order:
        tensors = [replace(tensor, q_invperm=tensors[0].q_invperm) for tensor in tensors]
    matrices_ = [backend.prepare_exl2(tensor, 1.0, device, torch.float16, False) for tensor in tensors]
    joined = backend.join(matrices_)
    if joined is None:
        pytest.skip(f"{backend.NAME} gains nothing by it")
    x = torch.randn(rows, 224, generator=random).half()
    expected = torch.cat([exl2.dequantize(tensor) for tensor in tensors], dim=1)
    assert torch.equal(backend.dequantize(joined).cpu(), expected)
    assert_close(backend.matmul(x.to(device), joined), x.double() @ expected.double(), "matmul")
