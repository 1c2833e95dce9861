"""The samplers that transformers also has, against it."""

import math

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from closeness import assert_close
from polybit.generator.sampling import Drawn, SamplingState, distributions
from polybit.generator.sampling.sampler import masked
from polybit.generator.sampling.shaping import guided
from polybit.generator.sampling.truncation import NUCLEUS_HEAD, top_p
from polybit.generator.sequence import Sequence
from polybit.text import Detokenizer
from polybit.text.pieces import Pieces
from unit.generator.sampling.rows import VOCABULARY, params, random_logits, states

TEXT = (1, 2, 2, 49)


def check(warpers, text=TEXT, **fields):
    """`fields` here do what `warpers` do there."""
    logits = random_logits()
    expected = logits.clone()
    for warper in warpers:
        expected = warper(torch.tensor([text] * len(logits)), expected)
    found = distributions(logits, states(len(logits), text, **fields))
    expected = expected.softmax(-1)
    assert torch.equal(found > 0, expected > 0)
    assert_close(found, expected)


@pytest.mark.parametrize("value", [0.1, 0.7, 1.5])
def test_temperature(value):
    check([TemperatureLogitsWarper(value)], temperature=value)


@pytest.mark.parametrize("value", [2, 7, VOCABULARY, VOCABULARY + 5])
def test_top_k(value):
    check([TopKLogitsWarper(value)], top_k=value)


@pytest.mark.parametrize("value", [0.01, 0.3, 0.8, 0.999])
def test_top_p(value):
    check([TopPLogitsWarper(value)], top_p=value)


@pytest.mark.parametrize("scale", [0.01, 1.0])  # nearly uniform: the nucleus is wider than the head looked at first
def test_top_p_of_a_large_vocabulary(scale):
    logits = random_logits(2, vocabulary=4 * NUCLEUS_HEAD, scale=scale)
    found, expected = top_p(logits, torch.full((2,), 0.6)), TopPLogitsWarper(0.6)(None, logits)
    differing = (found != expected).sum(-1)  # sums in another order may move the edge by a token
    assert differing.max() <= 1
    assert bool((found.isfinite().sum(-1) > NUCLEUS_HEAD).all()) == (scale < 1)


@pytest.mark.parametrize("value", [0.01, 0.2, 0.9])
def test_min_p(value):
    check([MinPLogitsWarper(value)], min_p=value)


@pytest.mark.parametrize("value", [0.05, 0.2, 0.5, 0.95])
def test_typical(value):
    check([TypicalLogitsWarper(value)], typical=value)


@pytest.mark.parametrize("value", [0.5, 1.1, 3.0])
def test_repetition_penalty(value):
    check([RepetitionPenaltyLogitsProcessor(value)], repetition_penalty=value)


def test_logit_bias():
    check(
        [SequenceBiasLogitsProcessor({(3,): 5.0, (7,): -2.5, (1,): -math.inf})],
        logit_bias={3: 5, 7: -2.5, 1: -math.inf},
    )


def test_all_in_order():
    warpers = [
        RepetitionPenaltyLogitsProcessor(1.3),
        SequenceBiasLogitsProcessor({(5,): 1.0}),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(20),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.02),
        TypicalLogitsWarper(0.9),
    ]
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical": 0.9}
    check(warpers, repetition_penalty=1.3, logit_bias={5: 1.0}, **settings)


def test_blocked_tokens():
    logits, (state,) = random_logits(1), states()
    state.blocked = [4, 9]
    assert torch.equal(masked(logits, [state]), SuppressTokensLogitsProcessor([4, 9])(None, logits))


@pytest.mark.parametrize("generated", [1, 2])
def test_min_tokens(generated):
    pieces = Pieces(dict.fromkeys(range(VOCABULARY), b"x"), frozenset(), strips_lead=False)
    sequence = Sequence([1, 2], params(min_tokens=2), frozenset([5, 6]), Detokenizer(pieces), room=9)
    for _ in range(generated):
        sequence.accept(Drawn(3))
    logits, ids = random_logits(1), torch.tensor([sequence.tokens])
    expected = MinNewTokensLengthLogitsProcessor(2, 2, [5, 6])(ids, logits)
    assert torch.equal(masked(logits, [sequence.sampling]), expected)


@pytest.mark.parametrize("scale", [1.0, 1.5, 0.5, 4.0])
def test_guidance(scale):
    """transformers computes both logits by a model of its own, so its formula is written out here."""
    p, q = random_logits(2), random_logits(2, seed=1)
    expected = scale * (p.log_softmax(-1) - q.log_softmax(-1)) + q.log_softmax(-1)
    assert_close(guided(p, q, torch.full((2,), scale)), expected)
    if scale == 1:
        assert_close(guided(p, q, torch.ones(2)).softmax(-1), p.softmax(-1))


def test_a_state_reads_the_text_that_it_accepted():
    logits = random_logits(1)
    state = SamplingState(params(repetition_penalty=1.5), [1])
    state.accept(2)
    state.accept(8)
    state.rewind(1)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[1, 2]]), logits.clone())
    assert_close(distributions(logits, [state]), expected.softmax(-1))
