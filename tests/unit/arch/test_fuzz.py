"""Whatever stands in a config.json, reading it ends in a spec or in one line of ConfigError."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from polybit.arch import SUPPORTED, read_model
from polybit.errors import ConfigError
from polybit.spec import Model
from unit.arch.published import PUBLISHED

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.sampled_from([2**31, 10**400, -(10**4000)])
    | st.floats()
    | st.sampled_from([1e-320, 1e308, 0.25, 1.0])
    | st.text(max_size=8)
    | st.sampled_from(["yarn", "longrope", "llama3", "dynamic", "linear", "su", "full_attention", "gelu", "mistral"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
ROPE_KEYS = (
    *("type", "rope_type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("partial_rotary_factor", "original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim"),
)
FREQUENCIES = {key: st.lists(st.floats(0.5, 4), min_size=1, max_size=64) for key in ("short_factor", "long_factor")}
ROPES = st.fixed_dictionaries({}, optional={**dict.fromkeys(ROPE_KEYS, SCALARS), **FREQUENCIES})


def outcome(config: Any) -> Model | str:
    """The spec, or the message of the refusal."""
    try:
        return read_model(config, "config.json")
    except ConfigError as error:
        return str(error)


def is_good_message(message: str) -> bool:
    return message.startswith("config.json: ") and message.isprintable() and len(message) < 700


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A published config with some entries, of any depth, replaced, added or dropped."""
    config = copy.deepcopy(PUBLISHED[draw(st.sampled_from(sorted(PUBLISHED)))])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from([config, *(value for value in config.values() if isinstance(value, dict))]))
        key = draw(st.sampled_from([*sorted(place), "rope_parameters", "rope_scaling", "head_dim"]))
        match draw(st.sampled_from(["replace", "rope", "drop"])):
            case "replace":
                place[key] = draw(VALUES)
            case "rope":
                place[draw(st.sampled_from(["rope_scaling", "rope_parameters"]))] = draw(ROPES)
            case _:
                place.pop(key, None)
    return config


@settings(max_examples=400)
@given(damaged())
def test_a_damaged_config_is_read_or_refused(config: dict[str, Any]) -> None:
    match outcome(config):
        case str(message):
            assert is_good_message(message)
        case model:
            assert all(linear.in_features > 0 and linear.out_features > 0 for linear in model.linears)


@given(st.sampled_from(sorted(SUPPORTED)), st.dictionaries(st.text(max_size=12), VALUES, max_size=6))
def test_a_config_of_noise_is_refused(name: str, noise: dict[str, Any]) -> None:
    message = outcome({**noise, "architectures": [name]})
    assert isinstance(message, str)
    assert is_good_message(message)


@given(VALUES)
def test_any_json_value_is_refused(value: Any) -> None:
    message = outcome(value)
    assert isinstance(message, str)
    assert is_good_message(message)
