"""What a conversion takes: sums that can be done by hand, on a model small enough for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polybit import arch, spec
from polybit.quantizer.candidates import HEAD_SETS
from polybit.quantizer.estimate import EFFICIENCY, estimate
from polybit.quantizer.needs import disk_needs, memory_needs, result_bytes, source_bytes
from polybit.quantizer.operations import operations
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.target import Target
from random_model import TINY_LLAMA

LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96  # weights of the two that TINY_LLAMA has
PLAIN = 2 * (96 * 64 + 5 * 64)  # embedding and norms in fp16
MOE = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}


def model(**config: Any) -> spec.Model:
    return arch.read_model(TINY_LLAMA | config, where="test")


def targets(*bits: float) -> list[Target]:
    return [Target(number, Path(f"{number}")) for number in bits]


def test_a_result_is_its_matrices_its_head_and_what_is_not_quantized() -> None:
    layout = HEAD_SETS[8].layout(64)
    head = 64 * 96 + (16 + 32 + 4 * 96) * len(layout.groups) // 8 + 4 * 64
    assert result_bytes(model(), 4.0, 8) == 2 * LAYER * 4 // 8 + head + PLAIN


def test_a_source_counts_a_head_that_is_tied_once() -> None:
    assert source_bytes(model()) == 2 * (2 * LAYER + 64 * 96) + PLAIN
    assert source_bytes(model(tie_word_embeddings=True)) == 2 * 2 * LAYER + PLAIN


def test_the_job_holds_states_first_and_one_model_s_matrices_then() -> None:
    few, many = (ConvertOptions(rows=rows, length=64, measure_rows=1, measure_length=64) for rows in (1, 100))
    states = 4 * 64 * 64
    larger = result_bytes(model(), 6.0, 6)
    assert disk_needs(model(), few, targets(3.0, 6.0)).work == 4 * states + larger - PLAIN
    assert disk_needs(model(), many, targets(3.0, 6.0)).work == 100 * states * (4 + 2)
    assert disk_needs(model(), few, targets(3.0, 6.0)).results == (result_bytes(model(), 3.0, 6), larger)
    measuring = disk_needs(model(), replace(few, measure_only=True), targets(3.0, 6.0))
    assert (measuring.results, measuring.work) == ((), (4 + 2) * states)


def test_a_forward_pass_is_two_operations_a_weight_and_token() -> None:
    work = operations(model(), ConvertOptions(rows=3, length=50))
    assert work["forward"] == 2 * 150 * 2 * LAYER
    assert work["loss"] == 4 * 150 * 64 * 96


def test_experts_that_a_token_does_not_see_cost_it_nothing() -> None:
    one, all_of_them = (operations(model(**MOE, num_experts_per_tok=k), ConvertOptions())["forward"] for k in (1, 4))
    attention = 2 * 64 * 64 + 2 * 64 * 32
    assert one / all_of_them == pytest.approx(LAYER / (attention + 4 * 3 * 64 * 96))


def test_several_models_are_judged_once() -> None:
    alone, both = (estimate(model(), ConvertOptions(), targets(*bits), 1e9) for bits in ((3.0,), (3.0, 4.0)))
    assert both.seconds["backward"] == alone.seconds["backward"]
    assert both.seconds["quantize"] == 2 * alone.seconds["quantize"]
    assert alone.seconds["forward"] == operations(model(), ConvertOptions())["forward"] / (EFFICIENCY * 1e9)


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (ConvertOptions(), {"calibrate", "forward", "loss", "backward", "quantize", "head", "test"}),
        (ConvertOptions(self_test=False, calibration="text.txt", method="gptq-v2"), {"measure", "quantize", "head"}),
        (ConvertOptions(measure_only=True), {"calibrate", "forward", "loss", "backward"}),
    ],
)
def test_the_stages_are_those_of_the_job(options: ConvertOptions, stages: set[str]) -> None:
    assert set(estimate(model(), options, targets(4.0), 1e9).seconds) == stages


def test_memory_grows_with_what_it_holds() -> None:
    small = memory_needs(model(), ConvertOptions())
    assert memory_needs(model(), ConvertOptions(rows=32)).ram - small.ram == 7 * 4 * 16 * 512 * 64
    assert small.resident == 7 * 4 * 16 * 512 * 64
    assert memory_needs(model(), ConvertOptions(rows=3000)).resident == 3 * 4 * 3000 * 512 * 64  # no pairs of 786 MB
    assert memory_needs(model(), ConvertOptions(rows=5000)).resident == 0  # states of 655 MB stay in RAM
    assert small.helper == 4 * (6 * 96 * 64 + 3 * 96**2)  # of the matrix with the most inputs
    assert memory_needs(model(num_hidden_layers=9), ConvertOptions()) == small  # one layer at a time
    assert memory_needs(model(intermediate_size=9600), ConvertOptions()).device > 50 * small.device / 3
