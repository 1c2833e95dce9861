"""Which bits the matrices of a synthetic model get."""

import pytest

from polybit.bench.recipe import choose_recipe
from polybit.bench.shapes import read_wish
from polybit.errors import ConfigError, JobError
from polybit.quantizer.candidates import HEAD_SETS
from polybit.spec import Model


def model(name: str) -> Model:
    return read_wish(f"{name}@4").model


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen-0.5b", "llama-1b", "mixtral-8x7b"])
@pytest.mark.parametrize("bits", [2.4, 3.0, 4.0, 6.5])
def test_bits_are_nearly_what_was_asked_for_and_never_more(name: str, bits: float) -> None:
    described = model(name)
    recipe = choose_recipe(described, bits, 6)
    stored = sum(map(recipe.stored_bits, described.linears))
    weights = sum(linear.in_features * linear.out_features for linear in described.linears)
    assert bits - 0.02 < stored / weights <= bits


def test_the_same_wish_gives_the_same_recipe() -> None:
    assert choose_recipe(model("llama-1b"), 2.4, 6) == choose_recipe(model("llama-1b"), 2.4, 6)


def test_the_head_has_bits_of_its_own() -> None:
    described = model("llama-1b")
    head = described.head.linear.key
    assert choose_recipe(described, 2.4, 6).sets[head] == HEAD_SETS[6]
    assert choose_recipe(described, 2.4, 8).sets[head] == HEAD_SETS[8]
    with pytest.raises(ConfigError, match="choose one of: 2, 3, 4, 5, 6, 8"):
        choose_recipe(described, 2.4, 7)


@pytest.mark.parametrize("bits", [1.5, 9.0, -1.0])
def test_bits_out_of_reach_are_refused_with_the_range(bits: float) -> None:
    with pytest.raises(JobError, match=r"the options span 2\.\d+ to 8\.\d+ bits"):
        choose_recipe(model("llama-1b"), bits, 6)
