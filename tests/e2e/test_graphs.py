"""Captured decode steps on a real GPU say what eager ones say. Needs an accelerator: pytest -m gpu."""

import math
from pathlib import Path

import pytest
import torch

from closeness import assert_close
from packed_model import matrices_of, pack_model
from polybit.cache import PAGE_TOKENS, KVPool
from polybit.generator import Engine
from polybit.generator.graphs import cuda_capture, obstacle
from polybit.generator.sampling import Drawn
from polybit.generator.scheduler import Part
from polybit.generator.sequence import Sequence
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.text import Tokenizer
from random_model import write_random_model
from unit.generator.decoding import LENGTHS, VOCABULARY, Bench
from unit.model.test_sizes import quantize_one
from unit.text.folders import byte_level

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192}
    folder = write_random_model(tmp_path_factory.mktemp("model"), config)
    quantize_one(folder, bits=4)
    return byte_level(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["packed", "unpacked"])
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    options = LoadOptions(device="cuda", dtype="float32", unpacked=request.param)
    model = load(open_model(folder, options))
    if obstacle(model) is not None:
        pytest.skip(f"not captured: {obstacle(model)}")
    return model


@pytest.mark.parametrize("count", range(1, len(LENGTHS) + 1))
def test_say_what_eager_steps_say(model: Model, folder: Path, count: int) -> None:
    expected = Bench(model, folder, None).tokens(LENGTHS[:count], 40)
    assert Bench(model, folder, cuda_capture(model.device)).tokens(LENGTHS[:count], 40) == expected


def test_batches_of_changing_size_share_memory_and_do_not_disturb_each_other(model: Model, folder: Path) -> None:
    found = []
    for capture in (None, cuda_capture(model.device)):
        bench = Bench(model, folder, capture)
        sequences = [bench.begin(length, first=i) for i, length in enumerate(LENGTHS)]
        for count in (1, 8, 3, 2, 5, 1, 8, 4, 8):
            bench.decode(sequences[-count:], 5)
        found.append([sequence.completion().tokens for sequence in sequences])
    assert found[0] == found[1]


def test_longer_contexts_elsewhere_leave_a_graph_its_rope_tables(model: Model, folder: Path) -> None:
    """Two pools over one model: the second's tables take the place of the first's."""

    def engine(pages: int, use_graphs: bool = True) -> Engine:
        pool = KVPool(model.spec, pages * PAGE_TOKENS, model.dtype, model.device, model.backend)
        return Engine(model, Tokenizer.open(folder), pool, folder, use_graphs)

    def say(engine: Engine) -> tuple[int, ...]:
        return engine.generate("Hello", temperature=0, max_tokens=50, ignore_eos=True).tokens

    expected, short, long = say(engine(2, use_graphs=False)), engine(2), engine(32)
    assert say(short) == expected
    assert say(long) == expected
    junk = [torch.full((1 << 14,), math.nan, device=model.device) for _ in range(200)]  # where a table was let go
    assert say(short) == expected
    del junk


@pytest.mark.parametrize("numbers", [[4], [1, 0, 4], [4] * 8])
def test_guesses_have_the_logits_of_eager_steps(model: Model, folder: Path, numbers: list[int]) -> None:
    found = []
    for capture in (None, cuda_capture(model.device)):
        bench = Bench(model, folder, capture, guesses=4)
        sequences = [bench.begin(length, first=i) for i, length in enumerate(LENGTHS[: len(numbers)])]
        found.append([])
        for first in range(3):  # replayed with other guesses
            guesses = [[(7 * first + i) % 256 for i in range(number)] for number in numbers]
            found[-1].append(bench.try_out(dict(zip(sequences, guesses, strict=True))))
    for captured, eager in zip(*found, strict=True):
        assert_close(captured, eager, "logits")


def next_logits(bench: Bench, sequences: list[Sequence]) -> torch.Tensor:
    """[S, V] after the last token of each."""
    parts = tuple(Part(sequence, 1) for sequence in sequences)
    for part in parts:
        part.sequence.extend(bench.pool.book, part.stop)
    return bench.runner.forward(parts).clone()


@pytest.mark.parametrize("count", [1, 2, 3, len(LENGTHS)])
def test_matrices_that_kernels_stream_give_the_logits_of_eager_steps(tmp_path: Path, count: int) -> None:
    """In half precision, where two ways to divide attention round differently: logits, not tokens, are compared."""
    streamed = pytest.importorskip("polybit.kernels.cuda.streamed")
    config = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192}
    folder = byte_level(pack_model(write_random_model(tmp_path, config)))
    model = load(open_model(folder, LoadOptions(device="cuda", dtype="float16", unpacked=False)))
    assert {type(matrix) for matrix in matrices_of(model)} == {streamed.Streamed}
    benches = [Bench(model, folder, capture) for capture in (None, cuda_capture(model.device))]
    batches = [[bench.begin(length, i) for i, length in enumerate(LENGTHS[:count])] for bench in benches]
    for _ in range(12):
        eager, captured = (next_logits(bench, sequences) for bench, sequences in zip(benches, batches, strict=True))
        assert_close(captured.half(), eager, "model")
        for sequences in batches:
            for sequence, token in zip(sequences, eager[:, :256].argmax(-1).tolist(), strict=True):
                sequence.accept(Drawn(token))
