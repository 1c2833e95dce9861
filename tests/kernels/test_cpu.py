"""EXL2 products on the CPU: every width and mixture, odd shapes, and what lies around the buffers."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from closeness import assert_close
from kernels.test_matmul import MIXES, random_exl2
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels.protocol import Matrix

numba = pytest.importorskip("numba")

cpu = pytest.importorskip("polybit.kernels.cpu")
layout = pytest.importorskip("polybit.kernels.cpu.layout")
matrices = pytest.importorskip("polybit.kernels.cpu.matrices")

WIDTHS = {str(bits): [(bits, 96), (bits, 32)] for bits in exl2.WIDTHS}
ODD = {
    "576": [(4, 64)] * 3 + [(3, 32)] * 12,
    "1376": [(6, 128), (5, 32)] + [(4, 64)] * 10 + [(2, 576)],
    "2080": [(3, 1024), (2, 1024), (2, 32)],
}


def unrounded(tensor: Exl2Tensor) -> Tensor:
    """[K, N] fp64: levels times scales, without the rounding of each product to fp16."""
    scales = exl2.group_scales(exl2.unpack_codes(tensor.q_scale), tensor.q_scale_max).double()
    weights = scales.repeat_interleave(torch.tensor([group.rows for group in tensor.layout.groups]), dim=0)
    for span in tensor.layout.spans():
        weights[span.rows] *= exl2.unpack_rows(tensor.q_weight[span.packed_rows], span.bits).double() - (
            1 << (span.bits - 1)
        )
    return weights[tensor.q_invperm.long()]


@pytest.mark.parametrize("rows", [*range(1, 10), 33])
@pytest.mark.parametrize("groups", (WIDTHS | MIXES).values(), ids=(WIDTHS | MIXES).keys())
def test_products(random, groups, rows) -> None:
    tensor = random_exl2(groups, 96, random)
    x = torch.randn(rows, tensor.in_features, generator=random)
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


@pytest.mark.parametrize("columns", [32, 64, 160])
@pytest.mark.parametrize("groups", ODD.values(), ids=ODD.keys())
def test_odd_sizes(random, groups, columns) -> None:
    tensor = random_exl2(groups, columns, random)
    x = torch.randn(3, tensor.in_features, generator=random)
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


def test_long_groups_do_not_overflow(random) -> None:
    tensor = random_exl2([(8, 8192)], 32, random)
    x = torch.full((1, 8192), 3.0)
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


@pytest.mark.parametrize("magnitude", [1e-25, 1e25])
def test_activations_of_any_magnitude(random, magnitude) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    x = torch.randn(2, tensor.in_features, generator=random) * magnitude
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(random, fault) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    x = torch.randn(2, tensor.in_features, generator=random)
    x[1, 17] = fault
    product = cpu.matmul(x, _prepare(tensor))
    assert product[0].isfinite().all()
    assert not product[1].isfinite().any()


def test_zeros_give_the_residual(random) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    residual = torch.randn(2, 32, generator=random)
    assert torch.equal(cpu.matmul(torch.zeros(2, tensor.in_features), _prepare(tensor), residual), residual)


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_the_number_of_threads_changes_no_bit(random, rows) -> None:
    tensor = random_exl2(MIXES["8+6+5+4+3+2"], 320, random)
    matrix, x = _prepare(tensor), torch.randn(rows, tensor.in_features, generator=random)
    products = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        products.append(cpu.matmul(x, matrix))
        assert numba.get_num_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)
    assert torch.equal(*products)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("groups", (WIDTHS | MIXES).values(), ids=(WIDTHS | MIXES).keys())
def test_nothing_beyond_the_buffers_counts(random, groups, rows) -> None:
    """The product is the same whatever bytes surround the matrix and the activations, and writes nothing there."""
    tensor = random_exl2(groups, 96, random)
    matrix, x = _prepare(tensor), torch.randn(rows, tensor.in_features, generator=random)
    expected = cpu.matmul(x, matrix)
    for filler in (0x00, 0xFF):
        guarded = [_surrounded(part, filler) for part in (*matrix.arrays, x.numpy(), np.empty((rows, 96), np.float32))]
        *parts, given, out = (inside for inside, _ in guarded)
        functions, no_residual = matrices.tile_functions(), np.empty((0, 96), np.float32)
        matrices.multiply(given, *parts, no_residual, functions, out)
        assert torch.equal(torch.from_numpy(out), expected)
        assert all(intact() for _, intact in guarded)


def _surrounded(array: np.ndarray, filler: int) -> tuple[np.ndarray, Callable[[], bool]]:
    """A copy with a page of `filler` on each side, and whether those pages are as they were."""
    margin = 4096
    memory = np.full(array.nbytes + 2 * margin, filler, np.uint8)
    memory[margin : margin + array.nbytes] = array.reshape(-1).view(np.uint8)
    inside = memory[margin : margin + array.nbytes].view(array.dtype).reshape(array.shape)
    outside = (memory[:margin], memory[margin + array.nbytes :])
    return inside, lambda: all((part == filler).all() for part in outside)


def _prepare(tensor: Exl2Tensor) -> Matrix:
    matrix = cpu.prepare_exl2(tensor, 1.0, torch.device("cpu"), torch.float32, False)
    assert isinstance(matrix, layout.TiledMatrix)
    return matrix


def test_memory_is_that_of_the_file(random) -> None:
    tensor = random_exl2([(4, 64)] * 4 + [(3, 32)] * 24 + [(2, 64)] * 16, 1536, random)
    assert _prepare(tensor).num_bytes < 1.1 * tensor.num_bytes
