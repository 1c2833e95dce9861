"""Every architecture on a GPU, all matrices EXL2 in CUDA's own layout, against the CPU's reference: pytest -m gpu.

Widths are mixed, and sizes odd. The CPU computes in float32 with the same quantized weights.
"""

import pytest

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

import torch

from oracle.on_gpu import Pair, logits
from oracle.test_oracle import CASES
from packed_model import matrices_of
from polybit.kernels.cuda.streamed import Streamed

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.of(request.param, tmp_path_factory.mktemp("packed"), packed=True)


def test_every_matrix_is_streamed(pair: Pair) -> None:
    assert {type(matrix) for matrix in matrices_of(pair.gpu)} == {Streamed}


def test_logits_are_the_cpus(pair: Pair) -> None:
    pair.assert_logits_agree()


def test_greedy_tokens_are_the_cpus(pair: Pair) -> None:
    pair.assert_greedy_tokens_agree()


def test_the_same_bits_every_time(pair: Pair) -> None:
    first = logits(pair.gpu, pair.prompt)
    assert all(torch.equal(logits(pair.gpu, pair.prompt), first) for _ in range(2))
    assert pair.say() == pair.say()
