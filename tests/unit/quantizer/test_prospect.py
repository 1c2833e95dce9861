"""What fits, before anything is converted: against the plan of a model that is, and against its own definition."""

from pathlib import Path

import pytest
import torch

from packed_model import pack_model
from polybit import arch
from polybit.bench.shapes import SHAPES
from polybit.errors import ConfigError, KernelError
from polybit.kernels import reference
from polybit.kernels.pages import FULL, read_bits
from polybit.kernels.registry import load_backend
from polybit.model.footprint import footprint_of
from polybit.model.machine import imagined_machine
from polybit.model.options import LoadOptions
from polybit.model.plan import Budget, Machine
from polybit.model.sizes import bits_per_weight, layer_sizes
from polybit.model.source import open_model
from polybit.quantizer.prospect import GPU_KEPT_BYTES, Prospect, contexts_up_to
from random_model import write_random_model

CPU = Machine((Budget(torch.device("cpu"), 1 << 34),), ram=1 << 34)
WIDE = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "num_attention_heads": 8}


def prospect(shape: str, split: str, cache: str = "fp16") -> Prospect:
    return Prospect(arch.read_model(SHAPES[shape], where=shape), imagined_machine(split), read_bits(cache), 6)


@pytest.mark.parametrize("config", [{}, {"attention_bias": True}], ids=["plain", "biased"])
def test_sizes_are_those_of_a_model_of_as_many_bits(config: dict[str, bool], tmp_path: Path) -> None:
    source = open_model(pack_model(write_random_model(tmp_path, WIDE | config)), LoadOptions(device="cpu"))
    bits = bits_per_weight(size for layer in layer_sizes(source) for size in layer)
    wanted = footprint_of(source, torch.float32, unpacked=False, backend=reference)
    found = Prospect(source.spec, CPU, FULL, head_bits=6).sizes(bits)
    matrices = [sum(block.matrices for block in sizes.blocks) for sizes in (found, wanted)]
    assert matrices[0] == pytest.approx(matrices[1], rel=0.01)
    assert [block.cache for block in found.blocks] == [block.cache for block in wanted.blocks]
    assert (found.table, found.norm, found.activations) == (wanted.table, wanted.norm, wanted.activations)
    assert found.scratch(300) == wanted.scratch(300)


@pytest.mark.parametrize(("split", "context"), [("8", 16384), ("24", 131072), ("3,4", 4096)])
def test_the_most_bits_fit_and_no_more_do(split: str, context: int) -> None:
    asked = prospect("llama-8b", split)
    most = asked.most_bits(context)
    assert most is not None
    assert asked.reach[0] < most < asked.reach[1]
    assert asked.fits(most, context)
    assert not asked.fits(most + 0.01, context)
    assert asked.total(most, context) <= sum(budget.free for budget in asked.machine.budgets)


def test_a_card_for_anything_takes_the_most_bits_there_are() -> None:
    asked = prospect("llama-1b", "80")
    assert asked.most_bits(4096) == pytest.approx(asked.reach[1])
    assert 8.0 <= asked.reach[1] < 8.5
    assert asked.longest(8.0) == 131072  # what the model reaches, though more would fit


def test_a_card_for_nothing_takes_none() -> None:
    asked = prospect("llama-70b", "16")
    assert asked.most_bits(4096) is None
    assert asked.longest(2.5) == 0


def test_a_quantized_cache_leaves_room_for_a_longer_context() -> None:
    full, quantized = (prospect("llama-8b", "8", cache).longest(4.0) for cache in ("fp16", "q4"))
    assert quantized / full == pytest.approx(16 / 4.5, rel=0.05)


def test_what_kernels_keep_is_what_they_say() -> None:
    try:
        cuda = load_backend("cuda")
    except KernelError:
        pytest.skip("the CUDA kernels' libraries are not installed")
    assert cuda.KEPT_BYTES == GPU_KEPT_BYTES


def test_a_head_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_bits is 7, expected one of 2, 3, 4, 5, 6, 8"):
        Prospect(arch.read_model(SHAPES["llama-1b"], where="test"), CPU, FULL, head_bits=7)


@pytest.mark.parametrize(
    ("longest", "wanted"),
    [(512, [512]), (4096, [4096]), (8192, [4096, 8192]), (40960, [4096, 8192, 16384, 32768, 40960])],
)
def test_contexts_double_up_to_the_longest(longest: int, wanted: list[int]) -> None:
    assert contexts_up_to(longest) == wanted
