"""Every architecture on a GPU against the CPU's reference, in float32. Needs an accelerator: pytest -m gpu."""

import pytest

from oracle.on_gpu import Pair
from oracle.test_oracle import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.of(request.param, tmp_path_factory.mktemp("plain"), packed=False)


def test_logits_are_the_cpus(pair: Pair) -> None:
    pair.assert_logits_agree()


def test_greedy_tokens_are_the_cpus(pair: Pair) -> None:
    pair.assert_greedy_tokens_agree()
