"""Rope overrides as a pure function on a spec."""

import pytest

from polybit import spec
from polybit.arch import read_model, with_rope_override
from polybit.errors import ConfigError
from unit.arch.published import GEMMA3, GPT2, LLAMA, PUBLISHED


def model(config: dict[str, object]) -> spec.Model:
    return read_model(config, "config.json")


def rope(of: spec.Model, layer: int = 0) -> spec.Rope:
    found = of.blocks[layer].attn.rope
    assert found is not None
    return found


def test_nothing_given_changes_nothing() -> None:
    assert with_rope_override(model(LLAMA)) == model(LLAMA)


def test_scale_replaces_the_models_own_scaling() -> None:
    changed = with_rope_override(model(LLAMA), scale=4.0)
    assert rope(changed) == spec.Rope(500000.0, 128, scaling=spec.LinearScaling(4.0))
    assert rope(changed, 31) == rope(changed)


def test_alpha_raises_theta_and_keeps_the_scaling() -> None:
    changed = rope(with_rope_override(model(LLAMA), alpha=2.0))
    assert changed.theta == pytest.approx(500000.0 * 2 ** (128 / 126))
    assert changed.scaling == rope(model(LLAMA)).scaling


def test_yarn_starts_from_the_length_that_the_model_was_trained_on() -> None:
    trained = {
        config: with_rope_override(model(PUBLISHED[config]), yarn=4.0)
        for config in ("LlamaForCausalLM", "YiForCausalLM")
    }
    scalings = {config: rope(changed).scaling for config, changed in trained.items()}
    attention = pytest.approx(1.1386294, abs=1e-6)  # 0.1 ln 4 + 1
    assert scalings["LlamaForCausalLM"] == spec.YarnScaling(4.0, 8192, attention)
    assert scalings["YiForCausalLM"] == spec.YarnScaling(4.0, 4096, attention)


def test_windowed_layers_beside_full_ones_keep_their_rope() -> None:
    changed = with_rope_override(model(GEMMA3), scale=2.0)
    assert rope(changed, 0) == rope(model(GEMMA3), 0)
    assert rope(changed, 5).scaling == spec.LinearScaling(2.0)


def test_windows_everywhere_are_no_reason_to_keep_it() -> None:
    assert rope(with_rope_override(model(PUBLISHED["MistralForCausalLM"]), scale=2.0)).scaling == spec.LinearScaling(
        2.0
    )


def test_a_model_without_rope_stays_as_it_is() -> None:
    assert with_rope_override(model(GPT2), scale=2.0) == model(GPT2)


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", ["scale", "alpha", "yarn"])
def test_nonsense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0"):
        with_rope_override(model(LLAMA), **{name: value})


def test_scale_and_yarn_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        with_rope_override(model(LLAMA), scale=2.0, yarn=2.0)
