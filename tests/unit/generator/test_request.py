"""Parameters on their way from a request to the samplers, over a random model."""

import json
import math

import pytest
import torch

from polybit.errors import RequestError
from polybit.generator import SamplingParams, load
from polybit.generator.request import new_sequence
from polybit.generator.sampling.mask import mask_of, tokens_in
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
        assert report.logits is None
    assert engine.generate("p", max_tokens=2).logprobs == ()
    assert engine.generate("p", max_tokens=2, mirostat_tau=3.0).logprobs == ()


def test_logits_come_with_each_token_as_the_model_gave_them(engine):
    done = engine.generate("p", temperature=0, max_tokens=3, return_logits=True, logit_bias={65: 1000})
    for report in done.logprobs:
        assert report.logits.shape == (260,)
        assert report.logits.log_softmax(-1)[65].item() == pytest.approx(report.model_logprob, abs=1e-5)


def test_mirostats_bound_begins_where_it_is_told(engine):
    params = SamplingParams(mirostat_tau=3.0, mirostat_mu=2.5)
    assert new_sequence([1], params, engine.tokenizer, VOCABULARY, 9, shown=()).sampling.bound == 2.5


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


class TestText:
    """What text asks of the tokens, over a model that says anything."""

    @pytest.fixture
    def free(self, engine):
        """What the model says by itself; text of one byte a token."""
        return engine.generate("p", seed=4, temperature=1, max_tokens=30, ignore_eos=True)

    def test_a_banned_string_is_not_written(self, engine, free):
        banned = free.text[8:11]
        done = engine.generate("p", seed=4, temperature=1, max_tokens=30, ignore_eos=True, banned_strings=banned)
        assert done.suppressed[0].lower() == banned.lower()
        assert engine.tokenizer.decode(done.suppressed_tokens).lower().startswith(banned[:2].lower())
        assert done.text[:8] == free.text[:8]
        assert banned.lower() not in done.text.lower()
        assert len(done.tokens) == 30

    def test_what_comes_after_is_what_the_model_says_of_what_is_there(self, engine):
        """The keys and values of tokens that were taken back are written over."""
        wanted = {"ignore_eos": True, "temperature": 0}
        wanted["banned_strings"] = engine.generate("p", **wanted, max_tokens=30).text[8:11]
        done = engine.generate("p", **wanted, max_tokens=30)
        prompt = [*engine.prompt_ids("p"), *done.tokens[:12]]
        assert engine.generate(prompt, **wanted, max_tokens=18).tokens == done.tokens[12:]
        assert engine.pool.book.num_held == 0

    def test_a_healed_prompt_goes_on_inside_its_last_token(self, engine):
        space = engine.tokenizer.id_of("Ġ")
        longer = engine.tokenizer.id_of("Ġa")
        done = engine.generate("p ", temperature=0, max_tokens=3, token_healing=True, logit_bias={longer: 1000})
        assert done.tokens[0] == longer
        assert done.text.startswith("a")
        assert len(done.tokens) == 4  # the first writes the prompt's end again, and does not count
        bound = engine.generate("p ", temperature=0, max_tokens=3, token_healing=True, logit_bias={longer: -math.inf})
        assert bound.tokens[0] == space
        assert engine.generate("p ", temperature=0, max_tokens=3).text == bound.text

    def test_a_prompt_of_one_token_is_not_healed(self, engine):
        assert engine.generate([65], max_tokens=2, token_healing=True, temperature=0).prompt_tokens == 1

    def test_choices(self, engine):
        found = {engine.generate("p", seed=seed, choices=["yes", "no"], ignore_eos=True).text for seed in range(20)}
        assert found == {"yes", "no"}
        done = engine.generate("p", seed=1, choices=["yes", "no"])
        assert (done.finish_reason, done.stopped_by) == ("stop", None)

    def test_starts_with(self, engine):
        assert engine.generate("p", seed=1, starts_with="Well, ", max_tokens=20).text.startswith("Well, ")

    def test_a_grammar_that_ends_anywhere_ends_by_the_end_token(self, engine):
        eos = engine.tokenizer.eos_id
        done = engine.generate("p", seed=1, regex="a{2,}", ignore_eos=True, logit_bias={eos: 1000})
        assert (done.text, done.stopped_by) == ("aa", eos)

    def test_json(self, engine):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        texts = [
            engine.generate("p", seed=seed, json_schema=schema | {"additionalProperties": False}).text
            for seed in range(6)
        ]
        assert {json.loads(text)["ok"] for text in texts} == {True, False}

    def test_a_grammar_and_a_banned_string(self, engine):
        wanted = {"regex": "(yes|no|maybe)", "banned_strings": ["YES", "may"]}
        assert {engine.generate("p", seed=seed, **wanted).text for seed in range(20)} == {"no"}
        with pytest.raises(RequestError, match="no token is left to go on with"):
            engine.generate("p", seed=1, choices="yes", banned_strings="yes")
        assert engine.pool.book.num_held == 0


class Odd:
    """A filter of somebody's own: nothing but tokens of odd ids, and three of them."""

    def __init__(self):
        self.tokens = []

    def allowed(self):
        return mask_of(range(1, 256, 2), VOCABULARY)

    @property
    def is_done(self):
        return len(self.tokens) == 3

    def accept(self, token):
        self.tokens.append(token)

    def rewind(self, num_tokens):
        del self.tokens[len(self.tokens) - num_tokens :]


class TestCodeOfTheRequestsOwn:
    def test_a_filter(self, engine):
        done = engine.stream("p", seed=1, own_filter=Odd()).drain()
        assert [token % 2 for token in done.tokens] == [1, 1, 1]
        assert (done.finish_reason, done.stopped_by) == ("stop", None)

    @pytest.mark.parametrize("fields", [{"regex": "a+"}, {"token_healing": True}])
    def test_a_filter_beside_another_is_refused(self, engine, fields):
        with pytest.raises(RequestError, match="leave one of them out"):
            engine.stream("p", own_filter=Odd(), **fields)

    def test_a_mask_of_another_size_is_refused_before_it_reaches_a_batch(self, engine):
        class Wide(Odd):
            def allowed(self):
                return mask_of([1], 2 * VOCABULARY)

        with pytest.raises(RequestError, match=r"own filter allows int32 \(17,\), expected 9 words"):
            engine.stream("p", own_filter=Wide())

    def test_each_token_may_be_replaced(self, engine):
        seen = []
        with engine.stream("p", max_tokens=4, logprobs=2, revise=lambda drawn: seen.append(drawn) or 66) as stream:
            assert stream.drain().tokens == (66,) * 4
        assert [len(drawn.report.likeliest) for drawn in seen] == [2] * 4

    def test_an_id_may_come_as_another_library_s_number(self, engine):
        with engine.stream("p", max_tokens=2, revise=lambda drawn: torch.tensor([[66]])) as stream:
            tokens = stream.drain().tokens
        assert (tokens, {type(token) for token in tokens}) == ((66, 66), {int})

    @pytest.mark.parametrize(
        ("revise", "message"),
        [
            (lambda drawn: 260, "revise gave 260, expected a token id from 0 to 259"),
            (lambda drawn: None, "revise gave None, expected a token id"),
            (lambda drawn: torch.tensor([66, 67]), r"revise gave tensor\(\[66, 67\]\), expected a token id"),
            (lambda drawn: 1 // 0, "own revise failed: ZeroDivisionError"),
        ],
    )
    def test_where_it_fails_the_others_go_on(self, engine, revise, message):
        other = engine.stream("other", max_tokens=5, ignore_eos=True)
        with pytest.raises(RequestError, match=message):
            engine.stream("p", revise=revise).drain()
        assert len(other.drain().tokens) == 5
        assert engine.pool.book.num_held == 0
