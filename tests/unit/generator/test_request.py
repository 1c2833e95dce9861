"""Parameters on their way from a request to the samplers, over a random model."""

import math

import pytest

from polybit.errors import RequestError
from polybit.generator import SamplingParams, load
from polybit.generator.request import new_sequence
from polybit.generator.sampling.mask import tokens_in
from random_model import write_random_model
from unit.text.folders import byte_level

VOCABULARY = 272  # of the model; the tokenizer has 260


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": VOCABULARY})
    return load(byte_level(folder), device="cpu")


def test_a_bias_decides(engine):
    done = engine.generate("p", temperature=0, max_tokens=3, logit_bias={65: 1000})
    assert done.tokens == (65, 65, 65)
    free = engine.generate("p", temperature=0, max_tokens=1, ignore_eos=True).tokens
    assert engine.generate("p", temperature=0, max_tokens=1, logit_bias={free[0]: -math.inf}).tokens != free


def test_no_end_before_min_tokens(engine):
    eos = engine.tokenizer.eos_id
    wanted = {"temperature": 0, "logit_bias": {eos: 1000}, "max_tokens": 9}
    assert engine.generate("p", **wanted).tokens == ()
    done = engine.generate("p", **wanted, min_tokens=4)
    assert (len(done.tokens), done.stopped_by) == (4, eos)
    assert eos not in done.tokens


def test_log_probabilities_come_with_each_token(engine):
    done = engine.generate("p", seed=1, max_tokens=5, logprobs=2, top_k=4, ignore_eos=True)
    assert len(done.logprobs) == len(done.tokens) == 5
    for report in done.logprobs:
        assert report.model_logprob < report.logprob <= 0
        assert len(report.likeliest) == 2
    assert engine.generate("p", max_tokens=2).logprobs == ()
    assert engine.generate("p", max_tokens=2, mirostat_tau=3.0).logprobs == ()


def test_mirostat_learns_from_each_token(engine):
    sequence = new_sequence([1], SamplingParams(mirostat_tau=3.0), engine.tokenizer, VOCABULARY, 9, shown=())
    stream = engine.stream("p", mirostat_tau=3.0, max_tokens=5, ignore_eos=True)
    stream.drain()
    assert stream._sequence.sampling.bound != sequence.sampling.bound == 6


def test_breakers_are_the_tokens_that_hold_them(engine):
    params = SamplingParams(dry_multiplier=1.0, dry_breakers=("\n", "a"))
    sequence = new_sequence([1], params, engine.tokenizer, VOCABULARY, 9, shown=())
    ids = {engine.tokenizer.id_of(token) for token in ("Ċ", "a", "Ġa", "<s>", "</s>", "<pad>")}
    assert sequence.sampling.breakers == ids


def test_xtc_spares_line_breaks_and_special_tokens_and_what_it_is_told_to(engine):
    params = SamplingParams(xtc_probability=0.5, xtc_spared_tokens=7)
    sequence = new_sequence([1], params, engine.tokenizer, VOCABULARY, 9, shown=())
    ids = {engine.tokenizer.id_of(token) for token in ("Ċ", "<s>", "</s>", "<pad>")}
    assert set(tokens_in(sequence.sampling.spared)) == {7, *ids}


@pytest.mark.parametrize("fields", [{"logit_bias": {260: 1.0}}, {"xtc_spared_tokens": 260}])
def test_tokens_that_the_model_lacks_are_named(engine, fields):
    (name,) = fields
    with pytest.raises(RequestError, match=f"{name} names token 260, expected token ids from 0 to 259"):
        engine.generate("p", **fields)
