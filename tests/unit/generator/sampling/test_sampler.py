"""Rows of a batch: each as if it were alone, by its own random numbers; and what comes back beside tokens."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closeness import assert_close
from polybit.errors import KernelError, RequestError
from polybit.generator.sampling import UNUSABLE, SamplingState, distributions, sample, unusable
from polybit.generator.sampling.mask import holds, is_member, mask_of, tokens_in
from polybit.generator.sampling.randomness import uniforms
from polybit.generator.sampling.sampler import draw, masked
from unit.generator.sampling.rows import VOCABULARY, chi_square, kept, of_probs, params, random_logits, states

settings = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.7]),
        "frequency_penalty": st.just(0.5),
        "penalty_range": st.sampled_from([0, 2]),
        "dry_multiplier": st.sampled_from([0.0, 1.0]),
        "logit_bias": st.just({3: 2.0}),
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "smoothing_factor": st.just(0.2),
        "top_n_sigma": st.just(1.0),
        "top_k": st.sampled_from([0, 1, 5, 49, 1000]),
        "top_p": st.sampled_from([0.05, 0.6, 1.0]),
        "top_a": st.just(0.3),
        "min_p": st.sampled_from([0.0, 0.1, 1.0]),
        "tfs": st.just(0.7),
        "typical": st.just(0.6),
        "mirostat_tau": st.sampled_from([0.0, 2.0]),
        "max_temperature": st.just(1.5),
        "temperature_last": st.booleans(),
        "xtc_probability": st.sampled_from([0.0, 0.5]),
        "skew": st.just(0.3),
        "seed": st.integers(0, 50),
    },
)


@given(st.lists(settings, min_size=2, max_size=5), st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_batch(rows, seed):
    logits = random_logits(len(rows), seed)
    batch = [SamplingState(params(**row), [i, i + 1, i]) for i, row in enumerate(rows)]
    together = sample(logits, batch)
    alone = [sample(logits[i : i + 1], [state]) for i, state in enumerate(batch)]
    assert together.tokens.tolist() == [int(one.tokens) for one in alone]
    assert together.reports == {i: one.reports[0] for i, one in enumerate(alone) if one.reports}


@given(st.lists(settings, min_size=2, max_size=5), st.integers(0, 1000))
def test_the_few_that_top_k_leaves_are_what_all_would_be(rows, seed):
    logits = random_logits(len(rows), seed, vocabulary=300)
    few, of_all = (
        [SamplingState(params(**{"top_k": 40, "logprobs": 2} | row), [i, i + 1, i]) for i, row in enumerate(rows)]
        for _ in range(2)
    )
    for state in of_all:
        state.num_candidates = 0
    expected, found = sample(logits, of_all), sample(logits, few)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert_close(distributions(logits, few), distributions(logits, of_all))
    for row, report in found.reports.items():
        assert report.likeliest[0] == (expected.reports[row].likeliest[0][0], pytest.approx(report.likeliest[0][1]))
        assert few[row].params.mirostat_tau == 0 or report.surprise == pytest.approx(
            expected.reports[row].surprise, rel=1e-4, abs=1e-5
        )


def test_more_equals_than_there_is_room_for_all_stay():
    probs = distributions(torch.zeros(2, 300), states(2, top_k=3))
    assert torch.equal(probs, torch.full((2, 300), 1 / 300))


def test_a_row_of_few_does_not_depend_on_its_batch():
    logits = random_logits(3, 1, vocabulary=300)
    batch = [SamplingState(params(top_k=k, logprobs=2, seed=k), []) for k in (3, 64, 65)]
    assert [state.num_candidates for state in batch] == [64, 64, 128]
    alone = [sample(logits[i : i + 1], [state]).reports[0] for i, state in enumerate(batch)]
    assert sample(logits, batch).reports == dict(enumerate(alone))


@given(st.lists(settings, min_size=2, max_size=5), st.integers(0, 1000))
def test_tokens_come_from_the_distribution_that_is_told(rows, seed):
    logits = random_logits(len(rows), seed)
    batch = [SamplingState(params(**row), [i, i + 1, i]) for i, row in enumerate(rows)]
    probs = distributions(logits, batch)
    assert (probs.sum(-1) - 1).abs().max() < 1e-5
    for row, token in enumerate(sample(logits, batch).tokens.tolist()):
        assert probs[row, token] > 0


@given(settings)
def test_nothing_that_comes_in_is_changed(fields):
    logits, (state,) = random_logits(1), [SamplingState(params(**fields), [1, 2, 1])]
    state.blocked, state.allowed = [4], mask_of(range(40), VOCABULARY)
    before, bound = logits.clone(), state.bound
    first, second = sample(logits, [state]).drawn(), sample(logits, [state]).drawn()
    assert first == second
    assert torch.equal(logits, before)
    assert state.bound == bound


class TestDraw:
    @given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0, 1 - 2**-24, width=32), st.data())
    def test_a_dropped_token_is_never_drawn(self, values, uniform, data):
        dropped = data.draw(
            st.lists(st.booleans(), min_size=len(values), max_size=len(values)).filter(lambda d: not all(d))
        )
        logits = torch.tensor([values]).masked_fill(torch.tensor([dropped]), -math.inf)
        assert not dropped[int(draw(logits, torch.tensor([uniform])))]

    def test_uniforms_select_by_cumulative_probability(self):
        logits = of_probs(0.25, 0.5, 0.25).expand(4, -1)
        assert draw(logits, torch.tensor([0.0, 0.2, 0.3, 0.99])).tolist() == [0, 0, 1, 2]

    def test_temperature_0_takes_the_first_likeliest(self):
        logits = torch.tensor([[1.0, 2.0, 2.0]])
        assert sample(logits, states(temperature=0)).tokens.tolist() == [1]
        assert distributions(logits, states(temperature=0)).tolist() == [[0, 1, 0]]

    def test_top_k_of_1_is_greedy_whatever_else_is_on(self):
        logits = random_logits()
        hot = states(3, top_k=1, temperature=5.0, xtc_probability=1.0, mirostat_tau=1.0)
        assert torch.equal(sample(logits, hot).tokens, logits.argmax(-1))


class TestStatistics:
    """Chi-square with fixed seeds; a bound is exceeded by chance once in ten thousand."""

    COUNT = 20_000
    PROBS = (0.5, 0.25, 0.0, 0.15, 0.0999, 0.0001)

    def draws(self, **fields):
        """Tokens of one request, drawn again and again from the same logits."""
        (state,) = states(**fields)
        logits, counts = of_probs(*self.PROBS), Counter()
        for _ in range(self.COUNT // 100):
            batch = [state.ahead([0] * i) for i in range(100)]
            counts.update(sample(logits.expand(100, -1), batch).tokens.tolist())
            state = batch[-1].ahead([0])
        return counts

    def test_a_request_draws_by_the_distribution(self):
        assert chi_square(self.draws(seed=1), self.PROBS) < 23.5  # 4 degrees of freedom

    def test_requests_with_seeds_in_a_row_are_independent(self):
        """The first token of each of 20,000 seeds, and pairs of neighbours."""
        batch = [SamplingState(params(seed=seed), ()) for seed in range(self.COUNT)]
        tokens = sample(of_probs(0.5, 0.3, 0.2).expand(self.COUNT, -1), batch).tokens.tolist()
        assert chi_square(Counter(tokens), [0.5, 0.3, 0.2]) < 18.5
        pairs = Counter(3 * a + b for a, b in itertools.pairwise(tokens))
        assert chi_square(pairs, [p * q for p in (0.5, 0.3, 0.2) for q in (0.5, 0.3, 0.2)]) < 31.9

    def test_xtc_drops_as_often_as_it_is_told(self):
        dropped = [0, 0, 0, 0.15 / 0.25, 0.0999 / 0.25, 0.0001 / 0.25]
        expected = [0.3 * d + 0.7 * p for d, p in zip(dropped, self.PROBS, strict=True)]
        assert chi_square(self.draws(seed=2, xtc_probability=0.3, xtc_threshold=0.12), expected) < 23.5

    def test_skew_draws_by_its_power(self):
        """As drawing u^exp(-skew) from the likeliest down."""
        power, reached, expected = math.exp(0.5), 0.0, [0.0] * 6
        for token in (0, 1, 3, 4, 5):
            expected[token] = (reached + self.PROBS[token]) ** power - reached**power
            reached += self.PROBS[token]
        assert chi_square(self.draws(seed=3, skew=0.5), expected) < 23.5

    def test_mirostat_reaches_its_surprise(self):
        logits = -torch.arange(1, 2001).float().log()[None]  # Zipf's law, 8.2 bits a token by itself
        (state,) = states(mirostat_tau=4.0, mirostat_eta=0.1, seed=4)
        surprises = []
        for _ in range(600):
            token, report = sample(logits, [state]).drawn()[0]
            surprises.append(-logits.log_softmax(-1)[0, token].item() / math.log(2))
            state.accept(token, report)
        assert sum(surprises[100:]) / 500 == pytest.approx(4.0, abs=0.15)


class TestMasks:
    @given(st.sets(st.integers(0, 99)), st.integers(1, 100))
    def test_tokens_to_bits_and_back(self, tokens, size):
        mask = mask_of(tokens, size)
        inside = sorted(t for t in tokens if t < size)
        assert tokens_in(mask) == inside
        assert [t for t in range(-1, 200) if holds(mask, t)] == inside
        allowed = is_member(torch.from_numpy(mask)[None], size)
        assert allowed.shape == (1, size)
        assert allowed[0].nonzero().flatten().tolist() == inside

    def test_each_row_has_its_own(self):
        batch = states(3)
        batch[0].allowed, batch[2].blocked = mask_of([5, 49], VOCABULARY), [0, 1]
        assert kept(masked(random_logits(), batch)) == [{5, 49}, {*range(VOCABULARY)}, {*range(2, VOCABULARY)}]


class TestReports:
    def test_log_probabilities_before_and_after(self):
        logits = of_probs(0.1, 0.6, 0.3)
        (drawn,) = sample(logits, states(top_k=2, logprobs=3, seed=1)).drawn()
        before, after = logits[0].log_softmax(-1), torch.tensor([0.0, 2 / 3, 1 / 3]).log()
        report = drawn.report
        assert report.model_logprob == pytest.approx(before[drawn.token].item())
        assert report.logprob == pytest.approx(after[drawn.token].item())
        assert [token for token, _ in report.model_likeliest] == [1, 2, 0]
        assert [token for token, _ in report.likeliest] == [1, 2]  # none of probability 0
        assert [p for _, p in report.likeliest] == pytest.approx(after[1:].tolist())
        assert report.surprise is None

    def test_the_likeliest_token_is_certain_where_it_is_taken(self):
        (drawn,) = sample(of_probs(0.1, 0.6, 0.3), states(temperature=0, logprobs=0)).drawn()
        assert (drawn.report.logprob, drawn.report.likeliest) == (0, ())
        assert drawn.report.model_logprob == pytest.approx(math.log(0.6))

    def test_only_rows_that_ask_get_one(self):
        batch = [*states(1, temperature=0), *states(1, temperature=0, logprobs=1)]
        assert [drawn.report is None for drawn in sample(random_logits(2), batch).drawn()] == [True, False]


class TestUnusableLogits:
    @pytest.mark.parametrize(
        ("value", "found"), [(math.nan, "NaN in 1 of 50 logits"), (math.inf, "a largest logit of inf")]
    )
    @pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"top_p": 0.5, "logprobs": 2}, {"typical": 0.5}])
    def test_are_told_of_their_row_alone(self, value, found, fields):
        logits = random_logits()
        logits[1, 7] = value
        tokens = sample(logits, states(3, **fields)).tokens.tolist()
        assert [token == UNUSABLE for token in tokens] == [False, True, False]
        with pytest.raises(KernelError, match=f"the model gave {found} after 2 tokens"):
            raise unusable(logits[1], 2)

    def test_all_logits_dropped_is_an_error(self):
        logits = torch.full((1, 4), -math.inf)
        assert sample(logits, states()).tokens.tolist() == [UNUSABLE]
        assert "a largest logit of -inf" in str(unusable(logits[0], 1))

    def test_no_token_left_is_the_requests_own_doing(self):
        logits, (state,) = random_logits(1), states()
        state.allowed, state.blocked = mask_of([3], VOCABULARY), [3]
        assert sample(logits, [state]).tokens.tolist() == [UNUSABLE]
        with pytest.raises(RequestError, match="no token is left to go on with after 2 tokens"):
            raise unusable(logits[0], 2)


def number(state, purpose):
    return uniforms([state.key], [state.count(purpose)])[0]


def test_numbers_are_splitmix64s():
    """By its definition in plain integers; the first words after seed 1234567 are published."""
    word = (1 << 64) - 1

    def finish(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & word
        return z ^ (z >> 31)

    stride = 0x9E3779B97F4A7C15
    assert [finish(1234567 + n * stride & word) for n in (1, 2)] == [6457827717110365317, 3203168211198807973]
    keys, counts = [0, 7, 2**63 - 1], [0, 5, 10**9]
    expected = [(finish(finish(k) + (n + 1) * stride & word) >> 40) / 2**24 for k, n in zip(keys, counts, strict=True)]
    assert uniforms(keys, counts).tolist() == expected


class TestState:
    def test_the_same_seed_draws_the_same_numbers(self):
        first, second = states(seed=7)[0], states(seed=7)[0]
        assert [number(first, 0), number(first, 1)] == [number(second, 0), number(second, 1)]
        assert number(first, 0) != number(first, 1)
        first.accept(1)
        assert number(first, 0) != number(second, 0)
        assert number(second.ahead([9]), 0) == number(first, 0)

    def test_without_a_seed_they_differ(self):
        assert number(states(seed=None)[0], 0) != number(states(seed=None)[0], 0)

    def test_a_taken_back_token_is_drawn_by_a_new_number(self):
        (state,) = states()
        before = number(state, 0)
        state.accept(3)
        state.rewind(1)
        assert number(state, 0) != before

    def test_what_is_ahead_leaves_the_present_alone(self):
        (state,) = states(text=[1], repetition_penalty=2.0)
        later = state.ahead([2, 3])
        assert (state.history.last(9).tolist(), later.history.last(9).tolist()) == ([1], [1, 2, 3])
