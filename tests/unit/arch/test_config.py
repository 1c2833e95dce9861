"""The reader: types, ranges, alternatives, children, and what it remembers of all that."""

from typing import Any

import pytest

from polybit.arch.config import HFConfig
from polybit.errors import ConfigError, UnsupportedModel


def reader(values: dict[str, Any]) -> HFConfig:
    return HFConfig(values, "config.json", "LlamaForCausalLM")


def test_the_first_name_with_a_value_counts_and_all_are_read() -> None:
    cfg = reader({"n_embd": None, "d_model": 8, "hidden_size": 4})
    assert cfg.count("n_embd", "hidden_size", "d_model") == 4
    cfg.refuse_unread()


def test_null_is_absence_but_none_to_an_optional_value_with_a_default() -> None:
    cfg = reader({"head_dim": None, "sliding_window": None})
    assert cfg.count("head_dim", default=7) == 7
    assert cfg.optional_count("sliding_window", default=4096) is None
    assert cfg.optional_count("other_window", default=4096) == 4096
    assert "head_dim" not in cfg


@pytest.mark.parametrize("value", [True, 0, -3, 2.0, "4", [4], {}, 2**31])
def test_a_count_is_a_whole_number_in_range(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^config\.json: layers is .*, expected a whole number from 1 to"):
        reader({"layers": value}).count("layers")


@pytest.mark.parametrize("value", [True, 0, -1.5, float("inf"), float("nan"), "1", 10**400, [1.0]])
def test_a_real_is_finite_and_above_zero(value: object) -> None:
    with pytest.raises(ConfigError, match="expected a number from 1e-30"):
        reader({"eps": value}).real("eps")


def test_reals_may_be_written_as_whole_numbers_and_flags_as_0_and_1() -> None:
    cfg = reader({"theta": 10000, "bias": 1, "tied": False})
    assert isinstance(cfg.real("theta"), float)
    assert cfg.flag("bias") is True
    assert cfg.flag("tied") is False


def test_lists_are_checked_item_by_item() -> None:
    cfg = reader({"types": ["a", 3], "layers": [0, 1], "factors": "1,2"})
    with pytest.raises(ConfigError, match=r"types\[1\] is 3, expected a string"):
        cfg.texts("types")
    assert cfg.counts("layers") == (0, 1)
    with pytest.raises(ConfigError, match="factors is '1,2', expected a list"):
        cfg.reals("factors")
    assert cfg.reals("absent") is None


def test_only_refuses_other_values_than_the_implemented_ones() -> None:
    cfg = reader({"mlp_type": "moe", "norm_type": "layer_norm"})
    cfg.only("norm_type", "layer_norm")
    cfg.only("absent", 1)
    with pytest.raises(
        UnsupportedModel, match="mlp_type is 'moe'; polybit implements LlamaForCausalLM only with 'plain'"
    ):
        cfg.only("mlp_type", "plain")


def test_unread_keys_are_refused_unless_inert_or_null() -> None:
    reader({"torch_dtype": "float16", "use_cache": True, "mystery": None}).refuse_unread()
    with pytest.raises(UnsupportedModel, match="mystery is False, a key that nothing reads"):
        reader({"mystery": False}).refuse_unread()


def test_a_child_counts_as_part_of_its_parent_and_is_the_same_each_time() -> None:
    cfg = reader({"text_config": {"layers": 2, "mystery": [1, 2, 3]}})
    assert cfg.child("text_config").count("layers") == 2
    assert cfg.child("text_config") is cfg.child("text_config")
    with pytest.raises(UnsupportedModel, match=r"text_config\.mystery is a list of 3"):
        cfg.refuse_unread()
    with pytest.raises(ConfigError, match="no vision_config, which LlamaForCausalLM needs"):
        cfg.child("vision_config")


def test_defaults_of_a_child_stand_in_for_absent_keys_and_need_not_be_read() -> None:
    child = reader({"text_config": {"heads": 4}}).child("text_config", {"heads": 8, "width": 16})
    assert child.count("heads") == 4
    child.refuse_unread()
    assert child.count("width") == 16


@pytest.mark.parametrize("value", ["x" * 1000, "two\nlines", 10**4000, [10**4000] * 50, {"a": "b" * 1000}])
def test_messages_are_short_and_one_line_whatever_the_value(value: object) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        reader({"mystery\nkey" * 20: value}).refuse_unread()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
