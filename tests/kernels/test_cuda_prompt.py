"""The kernels behind products of many rows, alone, on a card: whatever the size of its shared memory or work space."""

from dataclasses import replace

import pytest
import torch

from closeness import assert_close
from kernels.test_matmul import MIXES, random_exl2
from polybit.format import exl2
from polybit.kernels import reference
from polybit.spec import Activation

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.kernels.cuda import gather, prompt, streamed

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
SHARED = {"two tokens a thread block": 1 << 17, "one": 1 << 14}
WIDTHS = [32, 576, 1376, 2080]
KINDS = [torch.float16, torch.bfloat16]


@pytest.fixture(params=SHARED.values(), ids=SHARED.keys())
def _shared_memory(request, monkeypatch) -> None:
    monkeypatch.setattr(gather, "shared_memory", lambda _: request.param)


def order_of(width: int, random: torch.Generator) -> torch.Tensor:
    return torch.randperm(width, generator=random)


@pytest.mark.usefixtures("_shared_memory")
@pytest.mark.parametrize("rows", [1, 2, 71])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_gathered(random, rows, width, kind) -> None:
    order, x = order_of(width, random), torch.randn(rows, width + 3, generator=random).to(kind)
    for given in (x[:, :width], x[:, 3:]):
        gathered = gather.gather(given.to(DEVICE), order.int().to(DEVICE))
        assert torch.equal(gathered.cpu(), given[:, order])


@pytest.mark.usefixtures("_shared_memory")
@pytest.mark.parametrize("rows", [1, 2, 71])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [torch.float32, torch.float16])
def test_normed_rows_are_gathered(random, rows, width, kind, given) -> None:
    order, x = order_of(width, random), torch.randn(rows, width, generator=random).to(given) * 30
    weight = torch.rand(width, generator=random).to(kind)
    expected = reference.rms_norm(x.double(), weight.double(), 1e-6, 1.0)[:, order]
    gathered = gather.gather_normed(x.to(DEVICE), weight.to(DEVICE), 1e-6, 1.0, kind, order.int().to(DEVICE))
    assert gathered.dtype == kind
    assert_close(gathered, expected)


@pytest.mark.usefixtures("_shared_memory")
@pytest.mark.parametrize("rows", [1, 2, 71])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", Activation)
def test_gated_rows_are_gathered(random, rows, width, activation) -> None:
    order, both = order_of(width, random), (torch.randn(rows, 2 * width, generator=random) * 4).half()
    gate, up = both.to(DEVICE).chunk(2, dim=1)
    expected = reference.gated_activate(*both.double().chunk(2, dim=1), activation)[:, order]
    assert_close(gather.gather_gated(gate, up, activation, order.int().to(DEVICE)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("same_order", [False, True])
@pytest.mark.parametrize("columns", [64, 128, 192])
def test_products_in_pieces(random, monkeypatch, kind, same_order, columns) -> None:
    tensors = [random_exl2(MIXES["8+6+5+4+3+2"], width, random) for width in (96, 224, 32)]
    if same_order:
        tensors = [replace(tensor, q_invperm=tensors[0].q_invperm) for tensor in tensors]
    matrix = streamed.join([streamed.prepare(tensor, 1.0, DEVICE, kind) for tensor in tensors])
    monkeypatch.setattr(prompt, "WORK_WEIGHTS", columns * matrix.in_features)
    x = torch.randn(70, matrix.in_features, generator=random).to(kind)
    expected = torch.cat([exl2.dequantize(tensor).to(kind) for tensor in tensors], dim=1)
    assert len(matrix.input.spans) == (1 if same_order else 3)
    assert_close(prompt.multiply(x.to(DEVICE), matrix), x.double() @ expected.double(), "matmul")
