import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.errors import RequestError
from polybit.generator import SamplingParams
from polybit.generator.params import with_fields
from polybit.generator.sampling.steps import STEPS, steps_of


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "expected a number from 0 to 100"),
        ("temperature", math.nan, "expected a number"),
        ("temperature", math.inf, "expected a number"),
        ("temperature", "hot", "expected a number"),
        ("temperature", True, "expected a number"),
        ("temperature", None, "expected a number"),
        ("top_k", 1.5, "expected an integer from 0"),
        ("top_k", -1, "expected an integer from 0"),
        ("top_p", 0, "expected a number above 0 to 1"),
        ("top_p", 1.01, "expected a number above 0 to 1"),
        ("min_p", 2, "expected a number from 0 to 1"),
        ("repetition_penalty", 0, "expected a number above 0"),
        ("max_tokens", 0, "expected an integer from 1"),
        ("seed", -1, "expected an integer from 0"),
        ("ignore_eos", 1, "expected True or False"),
        ("temperature_last", 0, "expected True or False"),
        ("presence_penalty", 101, "expected a number from -100 to 100"),
        ("penalty_range", -1, "expected an integer from 0"),
        ("dry_base", 0.5, "expected a number from 1 to 10"),
        ("dry_breakers", "", "not empty"),
        ("typical", 0, "expected a number above 0 to 1"),
        ("xtc_probability", 1.5, "expected a number from 0 to 1"),
        ("xtc_spared_tokens", ["a"], "expected token ids"),
        ("logprobs", 2.5, "expected an integer from 0"),
        ("logit_bias", [1], "expected token ids with numbers from -1000 to 1000, or -inf"),
        ("logit_bias", {1: math.inf}, "expected token ids with numbers"),
        ("logit_bias", {1: math.nan}, "expected token ids with numbers"),
        ("logit_bias", {-1: 1.0}, "expected token ids with numbers"),
        ("stop", [""], "not empty"),
        ("stop", [5], "expected texts"),
        ("stop", 5, "expected texts"),
        ("stop_tokens", ["</s>"], "expected token ids"),
        ("stop_tokens", [-1], "expected token ids"),
    ],
)
def test_a_bad_value_is_named_with_its_range(name, value, expected):
    with pytest.raises(RequestError, match=f"{name} is .*{expected}"):
        SamplingParams(**{name: value})


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_value_is_taken_or_refused_by_name(value):
    for field in dataclasses.fields(SamplingParams):
        try:
            SamplingParams(**{field.name: value})
        except RequestError as error:
            if not str(error).startswith(f"{field.name} is "):
                raise


def test_a_single_stop_is_a_list_of_one():
    params = SamplingParams(stop="\n", stop_tokens=7)
    assert (params.stop, params.stop_tokens) == (("\n",), (7,))


def test_none_means_no_limit_where_the_field_says_so():
    assert SamplingParams(max_tokens=None, seed=None).max_tokens is None


def test_fields_replace_those_of_given_params():
    params = with_fields(SamplingParams(top_k=5, top_p=0.5), {"top_p": 0.9})
    assert (params.top_k, params.top_p) == (5, 0.9)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(RequestError, match="unknown sampling parameter 'temprature'; did you mean temperature"):
        with_fields(None, {"temprature": 1})
    with pytest.raises(RequestError, match="there are: max_tokens, "):
        with_fields(None, {"zzz": 1})


def test_no_sampler_is_on_by_its_default_but_two():
    assert [step.name for step in steps_of(SamplingParams())] == ["temperature", "min_p"]


def test_the_order_of_fields_is_the_order_of_application():
    fields = [field.name for field in dataclasses.fields(SamplingParams)]
    steps = [step for step in STEPS if step.name != "temperature_last"]  # which is the field for a place, not a value
    order = [fields.index(step.fields[0]) for step in steps if step.fields]
    assert order == sorted(order)


def test_the_least_may_not_be_above_the_most():
    with pytest.raises(RequestError, match="min_tokens is 9, expected at most max_tokens, 5"):
        SamplingParams(min_tokens=9, max_tokens=5)
    with pytest.raises(RequestError, match="min_temperature is 3, expected at most max_temperature, 2"):
        SamplingParams(min_temperature=3, max_temperature=2)


def test_parameters_are_values():
    assert SamplingParams(logit_bias={3: 1.0}) == SamplingParams(logit_bias={3: 1})
    assert hash(SamplingParams(logit_bias={3: 1.0})) == hash(SamplingParams(logit_bias={3: 1}))
