"""Where blocks lie must not change what a model says. The devices are names of one CPU: mechanics, not speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oracle.tiny import save_tiny
from polybit.cache import PAGE_TOKENS, KVPool
from polybit.errors import KernelError
from polybit.format.read_ahead import read_ahead
from polybit.kernels import reference
from polybit.kernels.protocol import Matrix
from polybit.model import load as load_module
from polybit.model.load import build, load
from polybit.model.model import LayerFn, Model
from polybit.model.offload import FerriedLayer, Ferry, pack
from polybit.model.options import LoadOptions
from polybit.model.setup import set_up
from polybit.model.source import ModelSource, open_model
from polybit.model.tensor_tree import map_tensors
from polybit.model.weights import FolderWeights, Linear
from polybit.modules.step import Step, whole_rows
from random_model import write_random_model
from unit.model.test_sizes import quantize_one

LAYERS = 5
TOKENS = torch.arange(30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = write_random_model(tmp_path_factory.mktemp("placed"), {"num_hidden_layers": LAYERS})
    quantize_one(folder, bits=4)
    return open_model(folder, LoadOptions(device="cpu", unpacked=False))


@pytest.fixture(scope="module")
def expected(source: ModelSource) -> Tensor:
    return logits(load(source))


def logits(model: Model) -> Tensor:
    return model.forward(TOKENS, *whole_rows(1, len(TOKENS), model.device))


def placed(source: ModelSource, cuts: Sequence[int], offloaded: int = 0) -> Model:
    """Blocks up to each cut on cpu:0, cpu:1, ..., the last few of them in RAM."""
    setup = set_up(source, 0)
    (whole,) = setup.plan.shares
    starts = [0, *cuts[:-1]]
    shares = tuple(
        replace(whole, device=torch.device("cpu", i), blocks=range(start, stop))
        for i, (start, stop) in enumerate(zip(starts, cuts, strict=True))
    )
    plan = replace(setup.plan, shares=shares, offloaded=range(LAYERS - offloaded, LAYERS))
    return build(source, replace(setup, plan=plan))


class TestSeveralDevices:
    @pytest.mark.parametrize("cuts", [[5], [2, 5], [1, 2, 5]])
    def test_say_what_one_says(self, source: ModelSource, expected: Tensor, cuts: list[int]) -> None:
        model = placed(source, cuts)
        assert [len(stage.layers) for stage in model.stages] == [b - a for a, b in zip([0, *cuts], cuts, strict=False)]
        assert torch.equal(logits(model), expected)

    def test_the_step_moves_once_a_stage(self, source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
        moves, model = [], placed(source, [1, 2, 5])
        real = Step.to
        monkeypatch.setattr(Step, "to", lambda step, device: (moves.append(device), real(step, device))[1])
        logits(model)
        assert moves == [torch.device("cpu", i) for i in range(3)]

    def test_all_of_a_step_moves(self) -> None:
        step, _ = whole_rows(2, 3, torch.device("cpu"))
        assert step.to(torch.device("cpu")) is step
        moved = vars(step.to(torch.device("meta")))
        assert {value.device.type for value in moved.values() if isinstance(value, Tensor)} == {"meta"}
        assert (moved["max_queries"], moved["max_length"]) == (3, 3)

    def test_keys_and_values_lie_with_their_block(self, source: ModelSource) -> None:
        model = placed(source, [2, 5])
        assert model.block_devices == (torch.device("cpu", 0),) * 2 + (torch.device("cpu", 1),) * 3
        pool = KVPool(
            source.spec, PAGE_TOKENS, torch.float32, (torch.device("cpu"), *[torch.device("meta")] * 4), reference
        )
        assert [pool.pages(i)[0].device.type for i in range(LAYERS)] == ["cpu"] + ["meta"] * 4
        one = 2 * PAGE_TOKENS * 2 * 2 * 16 * 4  # a page, and the spare one
        assert pool.device_bytes == {torch.device("cpu"): one, torch.device("meta"): 4 * one}


class TestTogether:
    def test_a_layer_in_one_run_of_memory_says_the_same(
        self, source: ModelSource, expected: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[Tensor] = []
        real = load_module.gather

        def noted(layer: LayerFn, allocate: Callable[[int], Tensor]) -> tuple[LayerFn, Tensor]:
            hollow, run = real(layer, allocate)
            runs.append(run)
            return hollow, run

        monkeypatch.setattr(load_module, "gather", noted)
        model = load(source)
        (stage,) = model.stages
        layers = tuple(load_module.together(layer, model.device) for layer in stage.layers)
        assert torch.equal(logits(replace(model, stages=(replace(stage, layers=layers),))), expected)
        for layer, run in zip(layers, runs, strict=True):
            inside = range(run.data_ptr(), run.data_ptr() + run.nbytes)
            places: list[int] = []
            map_tensors(layer, lambda tensor, found=places: (found.append(tensor.data_ptr()), tensor)[1])
            assert len(places) >= 7 + 2  # matrices, of which a packed one has several, and norms
            assert all(place in inside for place in places)


class TestOffloaded:
    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_blocks_in_ram_say_the_same_pass_after_pass(
        self, source: ModelSource, expected: Tensor, count: int
    ) -> None:
        model = placed(source, [5], offloaded=count)
        for _ in range(3):
            assert torch.equal(logits(model), expected)

    def test_after_other_stages_too(self, source: ModelSource, expected: Tensor) -> None:
        assert torch.equal(logits(placed(source, [2, 5], offloaded=3)), expected)

    def test_a_pass_that_was_cut_short_leaves_nothing_wrong(self, source: ModelSource, expected: Tensor) -> None:
        model = placed(source, [5], offloaded=5)
        step, store = whole_rows(1, len(TOKENS), model.device)
        with torch.inference_mode():
            x = model.embed(TOKENS, step)
            for layer in model.stages[0].layers[:3]:
                x = layer(x, step, store)
        assert torch.equal(logits(model), expected)

    def test_matrices_share_two_places(self, source: ModelSource) -> None:
        layers = [
            layer for layer in placed(source, [5], offloaded=4).stages[0].layers if isinstance(layer, FerriedLayer)
        ]
        ferry = layers[0].ferry
        assert {layer.ferry for layer in layers} == {ferry}
        places = [(place.data_ptr(), place.data_ptr() + place.nbytes) for place in ferry.places]
        for layer in layers:
            low, high = places[layer.index % 2]
            weight = layer.layer.attn.attn.o.matrix.weight
            assert low <= weight.data_ptr() < high

    def test_a_block_is_not_copied_again_while_it_is_there(
        self, source: ModelSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        brought: list[int] = []
        real = Ferry._bring
        model = placed(source, [5], offloaded=2)
        monkeypatch.setattr(Ferry, "_bring", lambda ferry, index: (brought.append(index), real(ferry, index))[1])
        for _ in range(3):
            logits(model)
        assert brought in ([0, 1], [1])  # 0 may be there since its copy was timed

    def test_memory_that_cannot_be_seen_is_refused(self) -> None:
        @dataclass(frozen=True)
        class Hidden(Matrix):
            seen: Tensor
            in_features: int = 2
            out_features: int = 2
            num_bytes: int = 1000

        linear = Linear(Hidden(torch.zeros(4)), None, 2, None)
        with pytest.raises(KernelError, match="1000 bytes are held, but 16 are seen"):
            pack({"key": linear})


class TestReadAhead:
    def test_a_model_read_ahead_is_the_same(
        self, source: ModelSource, expected: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("polybit.format.read_ahead.SMALLEST", 1)
        monkeypatch.setattr("polybit.format.read_ahead.BUFFER_BYTES", 1000)
        monkeypatch.setattr(
            load_module, "_checkpoints", lambda s, plan: read_ahead(s.checkpoint, list(load_module._parts(s, plan)))
        )
        read: list[str] = []
        real = FolderWeights.linear
        monkeypatch.setattr(
            FolderWeights,
            "linear",
            lambda weights, node: (read.extend(weights.checkpoint._held), real(weights, node))[1],
        )
        assert torch.equal(logits(load(source)), expected)
        assert {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(LAYERS)} <= set(read)

    def test_and_so_is_a_mixture_of_experts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_tiny("MixtralForCausalLM", tmp_path)
        source = open_model(tmp_path, LoadOptions(device="cpu"))
        tokens = torch.arange(10)
        plain = load(source).forward(tokens, *whole_rows(1, 10, torch.device("cpu")))
        setup = set_up(source, 0)
        count = len(source.spec.blocks)
        offloaded = replace(setup, plan=replace(setup.plan, offloaded=range(count)))
        assert torch.equal(build(source, offloaded).forward(tokens, *whole_rows(1, 10, torch.device("cpu"))), plain)
