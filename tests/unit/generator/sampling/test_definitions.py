"""The samplers that transformers lacks, against their definitions written out in plain Python, and by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closeness import assert_close
from polybit.generator.sampling import distributions
from polybit.generator.sampling.mask import mask_of
from polybit.generator.sampling.shaping import COLDEST, temperature
from polybit.generator.sampling.truncation import min_p, next_bound, top_k, top_p
from unit.generator.sampling.rows import VOCABULARY, kept, of_probs, random_logits, states


def probs_of(logits, **fields):
    """One row's probabilities, as a list."""
    text = fields.pop("text", (1, 2, 3))
    return distributions(logits, states(1, text, **fields))[0].tolist()


def normalised(weights):
    return [w / sum(weights) for w in weights]


def softmax(logits):
    return normalised([math.exp(value - max(logits)) for value in logits])


def check(found, expected):
    assert_close(torch.tensor(found), torch.tensor(expected, dtype=torch.float64))


logits_of_a_row = st.lists(st.integers(-64, 64).map(lambda n: n / 8), min_size=3, max_size=12, unique=True)


class TestPenalties:
    def test_presence_counts_once_and_frequency_each_time(self):
        logits = torch.zeros(1, 4)
        check(probs_of(logits, text=(1, 2, 2), presence_penalty=0.5), softmax([0, -0.5, -0.5, 0]))
        check(probs_of(logits, text=(1, 2, 2), frequency_penalty=0.5), softmax([0, -0.5, -1.0, 0]))
        check(probs_of(logits, text=(1, 2, 2), frequency_penalty=-0.5), softmax([0, 0.5, 1.0, 0]))

    def test_a_range_and_a_decay(self):
        text = (0, 1, 2, 3, 3)  # 3 and 3 in range; 2, 1, 0 weigh 2/3, 1/3, 0
        logits = torch.zeros(1, 5)
        wanted = {"penalty_range": 2, "penalty_decay": 2}
        check(probs_of(logits, text=text, frequency_penalty=3, **wanted), softmax([0, -1, -2, -6, 0]))
        check(probs_of(logits, text=text, presence_penalty=3, **wanted), softmax([0, -1, -2, -3, 0]))
        ones = torch.ones(1, 5)
        expected = softmax([1, 1 / (1 + 1 / 3), 1 / (1 + 2 / 3), 1 / 2, 1])
        check(probs_of(ones, text=text, repetition_penalty=2, **wanted), expected)

    def test_without_a_decay_the_range_ends_at_once(self):
        check(probs_of(torch.zeros(1, 4), text=(1, 2, 3), presence_penalty=2, penalty_range=2), softmax([0, 0, -2, -2]))

    def test_rows_of_other_lengths_do_not_touch(self):
        logits = torch.zeros(2, 4)
        pair = [*states(1, (3,), presence_penalty=1), *states(1, (1, 1, 2), presence_penalty=1)]
        check(distributions(logits, pair).tolist(), [softmax([0, 0, 0, -1]), softmax([0, -1, -1, 0])])

    def test_tokens_beyond_the_vocabulary_weigh_nothing(self):
        check(probs_of(torch.zeros(1, 4), text=(1, 77), presence_penalty=1), softmax([0, -1, 0, 0]))


def dry_by_definition(text, breakers, shortest, longest):
    """For each token: the longest suffix of the text that stands earlier too, followed by it, without a breaker."""
    found = {}
    for place in range(len(text) - 1):
        length = 0
        while (
            length < longest
            and place - length >= 0
            and text[place - length] == text[len(text) - 1 - length]
            and text[place - length] not in breakers
        ):
            length += 1
        token = text[place + 1]
        if length >= shortest and token not in breakers:
            found[token] = max(found.get(token, 0), length)
    return found


class TestDry:
    @given(
        st.lists(st.integers(0, 3), max_size=30),
        st.sets(st.integers(0, 3), max_size=1),
        st.integers(1, 3),
        st.integers(3, 6),
    )
    def test_matches(self, text, breakers, shortest, longest):
        (state,) = states(1, text, dry_multiplier=0.5, dry_allowed_length=shortest, dry_max_match=longest)
        state.breakers = frozenset(breakers)
        found = distributions(torch.zeros(1, 4), [state])[0].tolist()
        matches = dry_by_definition(text, breakers, shortest, longest)
        check(found, softmax([-0.5 * 1.75 ** (matches[t] - shortest) if t in matches else 0 for t in range(4)]))

    def test_a_range_hides_what_is_farther_back(self):
        wanted = {"text": (0, 1, 2, 3, 0, 1), "dry_multiplier": 1.0, "dry_allowed_length": 2}
        check(probs_of(torch.zeros(1, 4), **wanted), softmax([0, 0, -1, 0]))
        check(probs_of(torch.zeros(1, 4), **wanted, dry_range=5), softmax([0, 0, 0, 0]))


class TestShaping:
    @pytest.mark.parametrize("t", [COLDEST / 10, 1e-45, 100.0])
    def test_no_temperature_makes_nan(self, t):
        assert temperature(random_logits() * 1000, torch.full((3,), t)).softmax(-1).isfinite().all()

    @given(logits_of_a_row, st.floats(0.125, 4, width=16), st.sampled_from([0.5, 1.0, 2.0]))
    def test_smoothing(self, values, factor, t):
        top = max(values)
        expected = softmax([(top - factor * (value - top) ** 2) / t for value in values])
        check(probs_of(torch.tensor([values]), smoothing_factor=factor, temperature=t), expected)

    @given(logits_of_a_row, st.sampled_from([0.25, 1.0, 3.0]))
    def test_dynamic_temperature(self, values, exponent):
        probs = softmax(values)
        entropy = -sum(p * math.log(p) for p in probs) / math.log(len(probs))
        t = 0.5 + (2 - 0.5) * entropy**exponent
        wanted = {"min_temperature": 0.5, "max_temperature": 2.0, "temperature_exponent": exponent}
        check(probs_of(torch.tensor([values]), **wanted), softmax([value / t for value in values]))

    def test_dynamic_temperature_sees_only_what_is_left(self):
        logits = of_probs(0.4, 0.4, 0.1, 0.1)
        check(probs_of(logits, top_k=2, min_temperature=0.1, max_temperature=3.0), [0.5, 0.5, 0, 0])
        check(probs_of(of_probs(0.9, 0.1), min_p=0.5, max_temperature=3.0), [1, 0])  # one token: no entropy

    def test_temperature_last_comes_after_truncation(self):
        logits = of_probs(0.5, 0.3, 0.2)
        hot = {"temperature": 3.0, "min_p": 0.5}
        assert sum(p > 0 for p in probs_of(logits, **hot)) == 3
        expected = normalised([0.5 ** (1 / 3), 0.3 ** (1 / 3)])
        check(probs_of(logits, **hot, temperature_last=True), [*expected, 0])

    def test_skew(self):
        power = math.exp(0.7)  # of the cumulative distribution .5, .8, 1
        expected = [0.8**power - 0.5**power, 0.5**power, 1 - 0.8**power]
        check(probs_of(of_probs(0.3, 0.5, 0.2), skew=0.7), expected)
        mirrored = math.exp(-0.7)
        check(probs_of(of_probs(0.5, 0.3, 0.2), skew=-0.7)[0], 0.5**mirrored)

    def test_skew_brings_no_dropped_token_back(self):
        assert probs_of(of_probs(0.6, 0.3, 0.1), top_k=2, skew=5)[2] == 0


class TestTruncation:
    @given(logits_of_a_row, st.floats(0.125, 3, width=16))
    def test_top_n_sigma(self, values, n):
        mean = sum(values) / len(values)
        sigma = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        clear = [abs(value - (max(values) - n * sigma)) > 1e-4 for value in values]  # not on the edge
        found = probs_of(torch.tensor([values]), top_n_sigma=n)
        for value, p, sure in zip(values, found, clear, strict=True):
            assert not sure or (p > 0) == (value > max(values) - n * sigma)

    def test_top_n_sigma_does_not_see_dropped_tokens(self):
        logits = torch.tensor([[3.0, 2.0, -math.inf, -math.inf]])
        assert kept(distributions(logits, states(top_n_sigma=1.0)).log()) == [{0}]
        assert kept(distributions(logits, states(top_n_sigma=2.5)).log()) == [{0, 1}]

    @given(logits_of_a_row, st.floats(0.01, 0.99))
    def test_top_a(self, values, a):
        probs = softmax(values)
        bound = a * max(probs) ** 2
        for p, q in zip(probs, probs_of(torch.tensor([values]), top_a=a), strict=True):
            assert abs(p - bound) < 1e-6 or (q > 0) == (p > bound)

    @given(logits_of_a_row, st.floats(0.01, 0.99))
    def test_tail_free(self, values, z):
        order = sorted(range(len(values)), key=lambda i: -values[i])
        probs = softmax(values)
        first = [probs[b] - probs[a] for a, b in itertools.pairwise(order)]
        second = [abs(b - a) for a, b in itertools.pairwise(first)]
        shares = normalised(second) if sum(second) > 0 else []
        found = probs_of(torch.tensor([values]), tfs=z)
        assert found[order[0]] > 0
        assert found[order[-1]] == 0
        for i in range(len(shares)):
            reached = sum(shares[: i + 1])
            if abs(reached - z) > 1e-3:  # fp32 may see the edge one token off
                assert (found[order[i + 1]] > 0) == (reached < z)

    def test_tail_free_of_a_straight_line_cuts_nothing(self):
        assert min(probs_of(torch.zeros(1, 5), tfs=0.5)) > 0

    @given(logits_of_a_row, st.floats(0.5, 6))
    def test_mirostat_keeps_what_surprises_less_than_its_bound(self, values, tau):
        (state,) = states(mirostat_tau=tau)
        assert state.bound == 2 * tau
        state.bound = tau
        probs = softmax(values)
        for p, q in zip(probs, distributions(torch.tensor([values]), [state])[0].tolist(), strict=True):
            if p == max(probs):
                assert q > 0
            elif abs(-math.log2(p) - tau) > 1e-4:
                assert (q > 0) == (-math.log2(p) < tau)

    def test_mirostat_steers_against_its_error(self):
        assert next_bound(6.0, surprise=5.0, tau=3.0, eta=0.1) == pytest.approx(5.8)
        assert next_bound(6.0, surprise=1.0, tau=3.0, eta=0.1) == pytest.approx(6.2)

    def test_xtc_leaves_the_least_likely_of_the_top(self):
        logits = of_probs(0.4, 0.3, 0.2, 0.1)
        always = {"xtc_probability": 1.0}
        check(probs_of(logits, **always, xtc_threshold=0.15), [0, 0, 2 / 3, 1 / 3])
        check(probs_of(logits, **always, xtc_threshold=0.35), [0.4, 0.3, 0.2, 0.1])  # one token is no choice
        (state,) = states(**always, xtc_threshold=0.15)
        state.spared = mask_of([2, 0], 4)
        check(distributions(logits, [state])[0].tolist(), [0.4, 0.3, 0.2, 0.1])  # of the top only token 1 is left

    def test_top_p_is_the_smallest_set_that_reaches_p(self):
        probs = of_probs(0.2, 0.5, 0.3)
        assert kept(top_p(probs, torch.tensor([0.7]))) == [{1, 2}]
        assert kept(top_p(probs, torch.tensor([0.49]))) == [{1}]
        assert kept(top_p(probs, torch.tensor([0.81]))) == [{0, 1, 2}]

    def test_min_p_is_relative_to_the_likeliest(self):
        assert kept(min_p(of_probs(0.5, 0.3, 0.15, 0.05), torch.tensor([0.25]))) == [{0, 1, 2}]
        assert kept(min_p(of_probs(0.5, 0.3, 0.15, 0.05), torch.tensor([1.0]))) == [{0}]

    def test_top_k_keeps_equals(self):
        assert kept(top_k(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), torch.tensor([1.0]))) == [{1, 2}]

    def test_later_ones_see_what_earlier_ones_left(self):
        check(probs_of(of_probs(0.4, 0.3, 0.2, 0.1), top_k=2, top_p=0.5), [1, 0, 0, 0])  # 0.4 / 0.7 reaches 0.5


ON = {
    "top_n_sigma": 0.01,
    "top_k": 2,
    "top_p": 1e-6,
    "top_a": 1.0,
    "min_p": 1.0,
    "tfs": 0.0,
    "typical": 1e-6,
    "mirostat_tau": 1e-6,
    "xtc_probability": 1.0,
}


@pytest.mark.parametrize("name", ON)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 3.0, 1e4])
def test_something_is_always_left(name, scale):
    probs = distributions(random_logits(scale=scale), states(3, **{name: ON[name]}))
    assert_close(probs.sum(-1), torch.ones(3))


def test_the_whole_vocabulary_stays_where_nothing_is_on():
    logits = random_logits()
    assert torch.equal(distributions(logits, states(3)), logits.softmax(-1))
    assert len(kept(logits)[0]) == VOCABULARY
