"""Blocks on several GPUs or in RAM, and what is read ahead, on real devices. Needs accelerators: pytest -m gpu."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import polybit
from closeness import assert_close
from packed_model import matrices_of, pack_model
from polybit.format import read_ahead as reading
from polybit.format.checkpoint import Checkpoint
from polybit.format.read_ahead import Part, read_ahead
from polybit.model.load import build, load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.pinned import pinned_bytes, seen_by
from polybit.model.plan import GIB, GPU_SLACK
from polybit.model.setup import set_up
from polybit.model.source import ModelSource, open_model
from polybit.modules.step import whole_rows
from random_model import write_random_model
from unit.model.test_sizes import quantize_one
from unit.text.folders import byte_level

pytestmark = pytest.mark.gpu

LAYERS = 6
CUDA = torch.device("cuda", 0)
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    folder = write_random_model(tmp_path, {"num_hidden_layers": LAYERS, "vocab_size": 288})
    quantize_one(folder, bits=4)
    return open_model(byte_level(folder), LoadOptions(device="cuda", dtype="float32", unpacked=True))


@pytest.fixture
def streamed(tmp_path: Path) -> ModelSource:
    """All matrices packed, as CUDA's kernels hold them."""
    kind = pytest.importorskip("polybit.kernels.cuda.streamed").Streamed
    folder = pack_model(write_random_model(tmp_path, {"num_hidden_layers": LAYERS, "vocab_size": 288}))
    source = open_model(byte_level(folder), LoadOptions(device="cuda", dtype="float16", unpacked=False))
    assert {type(matrix) for matrix in matrices_of(load(source))} == {kind}
    return source


def logits(model: Model) -> Tensor:
    tokens = torch.arange(90, device=model.device)
    return model.forward(tokens, *whole_rows(3, 30, model.device)).cpu()


@pytest.mark.parametrize("count", [1, 2, 3, LAYERS])
def test_layers_in_ram_say_the_same_pass_after_pass(source: ModelSource, count: int) -> None:
    expected, setup = logits(load(source)), set_up(source, 0)
    model = build(source, replace(setup, plan=replace(setup.plan, offloaded=range(LAYERS - count, LAYERS))))
    for _ in range(5):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("count", [1, LAYERS])
def test_layers_in_ram_stream_the_same_bits_pass_after_pass(streamed: ModelSource, count: int) -> None:
    """Beside layers on the GPU only nearly: those multiply matrices of one input together."""
    expected, setup = logits(load(streamed)), set_up(streamed, 0)
    model = build(streamed, replace(setup, plan=replace(setup.plan, offloaded=range(LAYERS - count, LAYERS))))
    first = logits(model)
    assert_close(first.half(), expected, "model")
    assert all(torch.equal(logits(model), first) for _ in range(4))


@several
def test_two_gpus_say_what_one_says_and_generate(source: ModelSource) -> None:
    expected, setup = logits(load(source)), set_up(source, 0)
    (whole,) = setup.plan.shares
    first = replace(whole, blocks=range(2))
    second = replace(whole, device=torch.device("cuda", 1), blocks=range(2, LAYERS))
    split = replace(setup.plan, shares=(first, second))
    assert_close(logits(build(source, replace(setup, plan=split))), expected, "model")


@several
def test_a_model_that_one_gpu_may_not_hold_generates_on_two(source: ModelSource) -> None:
    setup = set_up(source, 256)
    (share,) = setup.plan.shares
    too_little = (share.total - setup.sizes.table - 1) / GIB  # even with the token embedding in RAM
    whole = polybit.load(source.folder, device="cuda", dtype="float32", unpacked=True, cache_tokens=256)
    halves = polybit.load(
        source.folder, gpu_split=f"{too_little},{too_little}", dtype="float32", cache_tokens=256, unpacked=True
    )
    assert [stage.device.index for stage in halves.model.stages] == [0, 1]
    assert whole.generate("Hello", max_tokens=8, temperature=0, ignore_eos=True).tokens == (
        halves.generate("Hello", max_tokens=8, temperature=0, ignore_eos=True).tokens
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_table_in_ram_is_read_by_the_gpu_and_takes_none_of_its_memory(dtype: torch.dtype) -> None:
    table = torch.randn(5000, 256).to(dtype).pin_memory()
    before = torch.cuda.memory_allocated()
    seen = seen_by(CUDA, table)
    assert torch.cuda.memory_allocated() == before
    assert (seen.device, seen.dtype, seen.shape) == (CUDA, dtype, table.shape)
    rows = torch.randint(5000, (100,))
    assert torch.equal(seen[rows.to(CUDA)].cpu(), table[rows])


def test_a_model_whose_table_is_in_ram_says_the_same(source: ModelSource) -> None:
    setup = set_up(source, 0)
    assert setup.plan.table == CUDA
    in_ram = replace(setup, plan=replace(setup.plan, table=torch.device("cpu")))
    assert torch.equal(logits(build(source, in_ram)), logits(build(source, setup)))


def test_pinned_bytes_are_pinned_and_let_go() -> None:
    for _ in range(3):
        buffer = pinned_bytes((1 << 20) + 1)
        assert buffer.is_pinned()
        assert len(buffer) == (1 << 20) + 1
        del buffer


def test_tensors_read_ahead_arrive_whole(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALLEST", 1)
    monkeypatch.setattr(reading, "BUFFER_BYTES", 1 << 10)
    checkpoint = Checkpoint.open(source.folder)
    names = sorted(checkpoint.names())
    parts = [Part(tuple(names[i::3]), CUDA) for i in range(3)]
    for part, view in zip(parts, read_ahead(checkpoint, parts), strict=True):
        for name in part.names:
            assert view.tensor(name).device == CUDA
            assert torch.equal(view.tensor(name).cpu(), checkpoint.tensor(name))


@pytest.mark.parametrize("kind", ["source", "streamed"])
def test_a_plan_is_kept(kind: str, request: pytest.FixtureRequest) -> None:
    """What is allocated is no more than what was planned."""
    source: ModelSource = request.getfixturevalue(kind)
    setup = set_up(source, 256)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logits(build(source, setup))
    (share,) = setup.plan.shares
    assert torch.cuda.max_memory_allocated() - before <= share.weights + share.scratch - GPU_SLACK
