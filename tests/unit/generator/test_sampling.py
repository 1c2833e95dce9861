import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from closeness import assert_close
from polybit.errors import KernelError
from polybit.generator import SamplingParams
from polybit.generator.sampling import (
    FILTERS,
    NUCLEUS_HEAD,
    PENALTIES,
    draw,
    filtered,
    min_p,
    sample,
    temperature,
    top_k,
    top_p,
)

VOCABULARY = 50
NEUTRAL = {name: sampler.neutral for name, sampler in {**PENALTIES, **FILTERS}.items()}


def random_logits(rows=3, seed=0):
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def params(**fields):
    """Neutral but for `fields`."""
    return SamplingParams(**{**NEUTRAL, "top_k": int(NEUTRAL["top_k"]), **fields})


def row(*probs):
    return torch.tensor([probs]).log()


def kept(logits):
    return [set(line.isfinite().nonzero().flatten().tolist()) for line in logits]


class TestAgainstTransformers:
    @pytest.mark.parametrize("value", [0.1, 0.7, 1.5])
    def test_temperature(self, value):
        logits = random_logits()
        expected = TemperatureLogitsWarper(value)(None, logits)
        found = temperature(logits, torch.full((3,), value))
        assert_close(found.softmax(-1), expected.softmax(-1))  # logits may differ by a constant

    @pytest.mark.parametrize("value", [1, 7, VOCABULARY, VOCABULARY + 5])
    def test_top_k(self, value):
        logits = random_logits()
        assert torch.equal(top_k(logits, torch.full((3,), float(value))), TopKLogitsWarper(value)(None, logits))

    @pytest.mark.parametrize("value", [0.01, 0.3, 0.8, 0.999])
    def test_top_p(self, value):
        logits = random_logits()
        assert torch.equal(top_p(logits, torch.full((3,), value)), TopPLogitsWarper(value)(None, logits))

    @pytest.mark.parametrize("scale", [0.01, 1.0])  # nearly uniform: the nucleus is wider than the head looked at first
    def test_top_p_of_a_large_vocabulary(self, scale):
        logits = torch.randn(2, 4 * NUCLEUS_HEAD, generator=torch.Generator().manual_seed(0)) * scale
        found, expected = top_p(logits, torch.full((2,), 0.6)), TopPLogitsWarper(0.6)(None, logits)
        differing = (found != expected).sum(-1)  # sums in another order may move the edge by a token
        assert differing.max() <= 1
        assert bool((found.isfinite().sum(-1) > NUCLEUS_HEAD).all()) == (scale < 1)

    @pytest.mark.parametrize("value", [0.01, 0.2, 0.9])
    def test_min_p(self, value):
        logits = random_logits()
        assert torch.equal(min_p(logits, torch.full((3,), value)), MinPLogitsWarper(value)(None, logits))

    @pytest.mark.parametrize("value", [0.5, 1.1, 3.0])
    def test_repetition_penalty(self, value):
        logits, texts = random_logits(), [[1, 2, 2], [3, 3, 3], [49, 0, 7]]
        expected = RepetitionPenaltyLogitsProcessor(value)(torch.tensor(texts), logits.clone())
        assert torch.equal(filtered(logits, [params(repetition_penalty=value)] * 3, texts), expected)

    def test_all_in_order(self):
        logits, texts = random_logits(), [[1, 2], [3, 4], [5, 6]]
        wanted = params(repetition_penalty=1.3, temperature=0.7, top_k=20, top_p=0.9, min_p=0.05)
        expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(texts), logits.clone())
        for warper in (
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ):
            expected = warper(None, expected)
        assert_close(filtered(logits, [wanted] * 3, texts).softmax(-1), expected.softmax(-1))


class TestByHand:
    def test_top_p_is_the_smallest_set_that_reaches_p(self):
        probs = row(0.2, 0.5, 0.3)
        assert kept(top_p(probs, torch.tensor([0.7]))) == [{1, 2}]
        assert kept(top_p(probs, torch.tensor([0.49]))) == [{1}]
        assert kept(top_p(probs, torch.tensor([0.81]))) == [{0, 1, 2}]

    def test_min_p_is_relative_to_the_likeliest(self):
        assert kept(min_p(row(0.5, 0.3, 0.15, 0.05), torch.tensor([0.25]))) == [{0, 1, 2}]
        assert kept(min_p(row(0.5, 0.3, 0.15, 0.05), torch.tensor([1.0]))) == [{0}]

    def test_top_k_keeps_equals(self):
        assert kept(top_k(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), torch.tensor([1.0]))) == [{1, 2}]

    def test_temperature_0_keeps_the_first_likeliest(self):
        assert kept(temperature(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([0.0]))) == [{1}]

    @pytest.mark.parametrize("t", [1e-30, 1e-45, 100.0])
    def test_no_temperature_makes_nan(self, t):
        assert temperature(random_logits() * 1000, torch.full((3,), t)).softmax(-1).isfinite().all()

    def test_later_filters_see_what_earlier_ones_left(self):
        probs = row(0.4, 0.3, 0.2, 0.1)
        assert kept(filtered(probs, [params(top_k=2, top_p=0.5)], [[]])) == [{0}]  # 0.4 / 0.7 reaches 0.5

    def test_a_penalty_counts_only_what_stands_in_the_text(self):
        logits = torch.tensor([[2.0, -2.0, 2.0]])
        assert filtered(logits, [params(repetition_penalty=2)], [[0, 1, 1]]).tolist() == [[1.0, -4.0, 2.0]]


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_row_keeps_every_bit_beside_any_other(name):
    active = {"repetition_penalty": 2.0, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.5}[name]
    logits = random_logits(2)
    found = filtered(logits, [params(), params(**{name: active})], [[1, 2], [1, 2]])
    assert torch.equal(found[0], logits[0])
    assert not torch.equal(found[1], logits[1])


fields = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.7]),
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 49, 1000]),
        "top_p": st.sampled_from([0.05, 0.6, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
    }
)


@given(st.lists(fields, min_size=2, max_size=4), st.integers(0, 1000), st.floats(0, 1 - 2**-24, width=32))
def test_a_row_does_not_depend_on_its_batch(rows, seed, uniform):
    wanted = [SamplingParams(**row) for row in rows]
    logits, texts = random_logits(len(rows), seed), [[i, i + 1] for i in range(len(rows))]
    together = sample(logits, wanted, texts, [uniform] * len(rows))
    alone = [sample(logits[i : i + 1], wanted[i : i + 1], texts[i : i + 1], [uniform]) for i in range(len(rows))]
    assert torch.equal(together, torch.cat(alone))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0, 1 - 2**-24, width=32), st.data())
def test_a_dropped_token_is_never_drawn(values, uniform, data):
    dropped = data.draw(
        st.lists(st.booleans(), min_size=len(values), max_size=len(values)).filter(lambda d: not all(d))
    )
    logits = torch.tensor([values]).masked_fill(torch.tensor([dropped]), -math.inf)
    token = int(draw(logits, torch.tensor([uniform])))
    assert not dropped[token]


def test_draws_follow_the_distribution():
    probs, count = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.0999, 0.0001]), 20_000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1))
    tokens = Counter(draw(probs.log().expand(count, -1), uniforms).tolist())
    alive = [i for i, p in enumerate(probs.tolist()) if p > 0]
    assert set(tokens) <= set(alive)
    chi_square = sum((tokens[i] - count * probs[i].item()) ** 2 / (count * probs[i].item()) for i in alive)
    assert chi_square < 18.5  # exceeded by chance once in a thousand (4 degrees of freedom)


def test_uniforms_select_by_cumulative_probability():
    logits = row(0.25, 0.5, 0.25).expand(4, -1)
    assert draw(logits, torch.tensor([0.0, 0.2, 0.3, 0.99])).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("value", "found"), [(math.nan, "NaN in 1 of 50 logits"), (math.inf, "a largest logit of inf")]
)
def test_logits_that_are_no_numbers_are_an_error(value, found):
    logits = random_logits()
    logits[1, 7] = value
    with pytest.raises(KernelError, match=f"the model gave {found} after 2 tokens"):
        sample(logits, [params()] * 3, [[1], [1, 2], [1, 2, 3]], [0.5] * 3)


def test_all_logits_dropped_is_an_error():
    with pytest.raises(KernelError, match="a largest logit of -inf"):
        sample(torch.full((1, 4), -math.inf), [params()], [[1]], [0.5])
