"""Guesses come true as often as they can, and every token as often as without them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polybit.generator.sampling import Guess, distributions, propose, sample
from polybit.generator.sampling.rejection import with_guesses
from unit.generator.sampling.rows import of_probs, random_logits, states

GRID = (torch.arange(1000) + 0.5) / 1000  # of the numbers that decide whether a guess is taken

weights = st.lists(st.sampled_from([0, 0, 1, 2, 5, 10]), min_size=5, max_size=5).filter(any)


@given(weights, weights)
def test_all_guesses_together_leave_the_distribution_alone(ours, theirs):
    p, q = (torch.tensor(each) / sum(each) for each in (ours, theirs))
    found, agreed = torch.zeros(5), 0.0
    for token in q.nonzero().flatten().tolist():
        logits = with_guesses(p.log().expand(len(GRID), -1), [Guess(token, q)] * len(GRID), GRID)
        drawn = logits.softmax(-1).mean(0)
        found += q[token] * drawn
        agreed += float(q[token] * drawn[token])
    assert found.tolist() == pytest.approx(p.tolist(), abs=2e-3)
    assert agreed == pytest.approx(float(torch.minimum(p, q).sum()), abs=2e-3)


@pytest.mark.parametrize("fields", [{}, {"top_k": 5}])
def test_rows_without_a_drawn_guess_draw_as_they_would(fields):
    logits, q = random_logits(60), random_logits(1)[0].softmax(-1)
    batch = [state for seed in range(60) for state in states(seed=seed, **fields)]
    plain = sample(logits, batch).tokens
    found = sample(logits, batch, [None, Guess(3), Guess(5, q)] * 20).tokens
    undrawn = torch.arange(60) % 3 < 2
    assert torch.equal(found[undrawn], plain[undrawn])
    assert not torch.equal(found, plain)


def test_the_same_distribution_is_always_right():
    logits = random_logits(50)
    batch = [state for _ in range(50) for state in states(seed=None)]
    guesses = propose(logits, batch)
    assert torch.equal(torch.stack([guess.probs for guess in guesses]), distributions(logits, batch))
    assert sample(logits, batch, guesses).tokens.tolist() == [guess.token for guess in guesses]


def test_a_rest_that_rounding_leaves_empty_is_drawn_as_if_nothing_were_guessed():
    p = torch.tensor([0.5, 0.5])
    q = torch.tensor([0.5, 0.500001])
    (row,) = with_guesses(p.log()[None], [Guess(1, q)], torch.tensor([0.9999999])).softmax(-1).tolist()
    assert row == pytest.approx([0.5, 0.5])


def test_who_has_a_seed_or_draws_nothing_tells_no_distribution():
    logits = of_probs(0.5, 0.3, 0.2).expand(3, -1)
    batch = [*states(seed=1), *states(seed=None), *states(seed=None, temperature=0)]
    guesses = propose(logits, batch)
    assert [guess.probs is None for guess in guesses] == [True, False, True]
    assert guesses[0].token == sample(logits[:1], batch[:1]).tokens.item()
    assert guesses[2].token == 0


def test_reports_tell_the_models_distribution_and_not_what_was_drawn_from():
    logits = of_probs(0.5, 0.3, 0.2).expand(40, -1)
    batch = [state for _ in range(40) for state in states(seed=None, logprobs=1)]
    q = torch.tensor([0.1, 0.1, 0.8])
    found = sample(logits, batch, [Guess(2, q)] * 40)
    for row, token in enumerate(found.tokens.tolist()):
        assert math.exp(found.reports[row].logprob) == pytest.approx([0.5, 0.3, 0.2][token], abs=1e-5)
