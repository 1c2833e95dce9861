"""Captured decode steps, with a capture that only runs the work again: what it reads and writes is all in its places.

What a GPU makes of it is tested in e2e/.
"""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from closeness import assert_close
from polybit.generator.graphs import READ_BY_HOST, SIZES, decode_graphs, obstacle
from polybit.generator.runner import Part
from polybit.generator.scheduler import Limits
from polybit.generator.sequence import Sequence
from polybit.generator.serving import Serving
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from random_model import write_random_model
from unit.generator.decoding import GREEDY, LENGTHS, VOCABULARY, Bench
from unit.model.test_placement import placed
from unit.text.folders import byte_level


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": VOCABULARY}))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(open_model(folder, LoadOptions(device="cpu", backend="reference")))


class Captures:
    """Notes the sizes of the steps that are captured."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, work):
        self.sizes.append(len(work()))
        return work


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_say_what_eager_steps_say(model: Model, folder: Path, count: int) -> None:
    expected = Bench(model, folder, None).tokens(LENGTHS[:count], 12)
    assert Bench(model, folder, Captures()).tokens(LENGTHS[:count], 12) == expected
    assert len(set(expected[0])) > 2


@pytest.mark.parametrize("is_captured", [False, True])
def test_steps_made_ready_ahead_say_the_same(
    model: Model, folder: Path, is_captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server looks ahead; a plan that was never carried out before is laid out when its turn comes."""
    expected = Bench(model, folder, None).tokens(LENGTHS, 12)
    bench, laid_out = Bench(model, folder, Captures() if is_captured else None), []
    forward = bench.runner.forward
    monkeypatch.setattr(bench.runner, "forward", lambda parts: laid_out.append(len(parts)) or forward(parts))
    serving = Serving(bench.runner, Limits(len(LENGTHS), prompt_tokens=4000))
    sequences = [bench.new(length, first=i, room=13) for i, length in enumerate(LENGTHS)]
    for sequence in sequences:
        serving.submit(sequence)
    steps = 0
    while not serving.is_idle:
        serving.step()
        steps += 1
    assert [sequence.completion().tokens for sequence in sequences] == expected
    assert (steps, len(laid_out)) == (13, 3)  # the prompts, and twice where a page is full


def test_each_size_is_captured_once_and_prompts_are_not(model: Model, folder: Path) -> None:
    captures = Captures()
    bench = Bench(model, folder, captures)
    sequences = [bench.begin(5, first=i) for i in range(9)]
    assert captures.sizes == []
    for count in (3, 1, 4, 2, 3, 5, 9, 8):
        bench.decode(sequences[:count], 1)
    assert captures.sizes == [4, 1, 2, 8, 16]


def test_a_step_with_part_of_a_prompt_is_eager(model: Model, folder: Path) -> None:
    captures = Captures()
    bench = Bench(model, folder, captures)
    running = bench.begin(5)
    newcomer = Sequence([1, 2, 3], GREEDY, frozenset(), bench._tokenizer.detokenizer(), room=10)
    for count in (2, 1):
        bench.run(Part(running, 1), Part(newcomer, count))
    assert newcomer.num_generated == 1
    assert captures.sizes == [2]  # the second: one token each, and both go on from it


@pytest.mark.parametrize("numbers", [[3], [1, 0, 3], [3, 3, 3, 3], [0, 2, 0, 1, 3]])
def test_guesses_are_tried_out_in_a_captured_step(model: Model, folder: Path, numbers: list[int]) -> None:
    """In pages in which what nobody wrote is NaN; the last of them are near a page's end."""
    captures, found, said = Captures(), [], []
    for capture in (None, captures):
        bench = Bench(model, folder, capture, guesses=3)
        sequences = [bench.begin(length, first=i) for i, length in enumerate(LENGTHS[: len(numbers)])]
        guesses = {sequence: [5, 9, 200][:number] for sequence, number in zip(sequences, numbers, strict=True)}
        found += [bench.try_out(guesses) for _ in range(2)]
        bench.decode(sequences, 2)
        said.append([sequence.tokens for sequence in sequences])
    for captured in found[2:]:
        assert_close(captured, found[0], "logits")
    assert said[1] == said[0]
    size = next(size for size in SIZES if size >= len(numbers))
    assert captures.sizes[-2:] == [4 * size, size]  # a prompt of one token came before


def test_more_guesses_than_a_graph_has_room_for_are_eager(model: Model, folder: Path) -> None:
    captures = Captures()
    bench = Bench(model, folder, captures, guesses=2)
    sequence = bench.begin(5)
    bench.try_out({sequence: [1, 2, 3]})
    assert captures.sizes == []
    bench.try_out({sequence: [1, 2]})
    assert captures.sizes == [3]


def test_larger_batches_than_the_largest_are_eager(model: Model, folder: Path) -> None:
    captures, count = Captures(), SIZES[-1] + 1
    bench = Bench(model, folder, captures, pages=count)
    sequences = [bench.begin(2, first=i) for i in range(count)]
    bench.decode(sequences, 1)
    assert captures.sizes == []
    bench.decode(sequences[1:], 1)
    assert captures.sizes == [SIZES[-1]]


def test_a_smaller_batch_leaves_the_pages_of_those_before_alone(model: Model, folder: Path) -> None:
    bench = Bench(model, folder, Captures())
    sequences = [bench.begin(20, first=i) for i in range(4)]
    bench.decode(sequences, 1)
    *others, last = sequences
    for part in bench.pool.pages(1):
        part[last.pages] = math.nan
    bench.decode(others, 3)
    assert all(part[last.pages].isnan().all() for part in bench.pool.pages(1))


def test_only_the_spare_page_takes_what_fills_a_batch_up(model: Model, folder: Path) -> None:
    bench = Bench(model, folder, Captures())
    bench.decode([bench.begin(20, first=i) for i in range(3)], 1)
    keys, _ = bench.pool.pages(0)
    written = (~keys.isnan()).flatten(1).any(1).nonzero().flatten().tolist()
    assert written == [0, 1, 2, bench.pool.spare_page]
    assert (~keys[bench.pool.spare_page].isnan()).flatten(1).any(1).nonzero().flatten().tolist() == [0]


class TestWhoCapturesSteps:
    """Every kind of model that cannot says why."""

    ABLE = SimpleNamespace(NAME="able", **dict.fromkeys(READ_BY_HOST))

    def test_a_plain_model_on_a_fast_backend(self, model: Model) -> None:
        assert obstacle(replace(model, backend=self.ABLE)) is None

    def test_not_the_reference(self, model: Model) -> None:
        assert obstacle(model) == "backend reference reads on the host in attention and matmul"

    def test_not_a_split_model(self, folder: Path) -> None:
        source = open_model(write_random_model(folder.parent / "five", {"num_hidden_layers": 5}), LoadOptions("cpu"))
        split, in_ram = placed(source, [2, 5]), placed(source, [5], offloaded=2)
        assert obstacle(replace(split, backend=self.ABLE)) == "the layers lie on several devices"
        assert obstacle(replace(in_ram, backend=self.ABLE)) == "some layers live in RAM"

    def test_not_a_mixture_of_experts(self, tmp_path: Path) -> None:
        mixtral = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
        model = load(open_model(write_random_model(tmp_path, mixtral), LoadOptions(device="cpu")))
        assert obstacle(replace(model, backend=self.ABLE)) == "which experts have work is read on the host"

    @pytest.mark.parametrize("wanted", [True, False])
    def test_a_gpus_log_says_it(self, model: Model, caplog: pytest.LogCaptureFixture, wanted: bool) -> None:
        caplog.set_level("INFO")
        assert decode_graphs(model, None, wanted) is None
        assert caplog.text == ""
        on_gpu = SimpleNamespace(
            device=torch.device("cuda"), stages=model.stages, spec=model.spec, backend=model.backend
        )
        assert decode_graphs(on_gpu, None, wanted) is None
        reason = "backend reference reads on the host" if wanted else "they are turned off"
        assert f"decode steps run without CUDA graphs: {reason}" in caplog.text
