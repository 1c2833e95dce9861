"""Names: what is supported, what is refused and how."""

import pytest

from polybit.arch import SUPPORTED, UNSUPPORTED, read_model
from polybit.errors import ConfigError, UnsupportedModel


def test_no_name_is_both_supported_and_refused() -> None:
    assert not set(SUPPORTED) & set(UNSUPPORTED)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_known_architecture_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        read_model({"architectures": [name]}, "model/config.json")
    assert str(raised.value) == f"model/config.json: {name} is known but not supported yet: {UNSUPPORTED[name]}"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("Qwen3MoEForCausalLM", "Qwen3MoeForCausalLM"),
        ("", ""),
        ("\n" * 99, ""),
    ],
)
def test_any_other_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        read_model({"architectures": [name]}, "config.json")
    message = str(raised.value)
    assert f"the nearest supported name is {nearest}" in message
    assert message.rsplit(" ", 1)[1] in SUPPORTED
    assert "\n" not in message


@pytest.mark.parametrize("config", [None, [], "text", 3, {1: 2}])
def test_what_is_no_object_is_no_config(config: object) -> None:
    with pytest.raises(ConfigError, match="expected a JSON object"):
        read_model(config, "config.json")


@pytest.mark.parametrize("names", [None, "LlamaForCausalLM", [], ["LlamaForCausalLM", "MistralForCausalLM"], [1]])
def test_there_must_be_one_architecture(names: object) -> None:
    with pytest.raises(ConfigError, match=r"architectures is .*, expected a list of one name"):
        read_model({"architectures": names}, "config.json")
