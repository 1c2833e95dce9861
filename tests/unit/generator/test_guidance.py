"""Classifier-free guidance: a request and its negative prompt, against two passes over whole texts at every token."""

from dataclasses import replace

import pytest
import torch

from polybit.cache import PAGE_TOKENS
from polybit.errors import RequestError
from polybit.generator import SamplingParams, load
from polybit.generator.sampling.shaping import guided
from polybit.modules.step import whole_rows
from random_model import write_random_model
from unit.text.folders import byte_level

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, cfg_scale=2.5, negative_prompt="a bad one")
PROMPT = "a good one"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = {"vocab_size": 272, "max_position_embeddings": 1024}
    return byte_level(write_random_model(tmp_path_factory.mktemp("model"), config))


@pytest.fixture(scope="module")
def engine(folder):
    return load(folder, device="cpu", dtype="float32", backend="reference", cache_tokens=4 * PAGE_TOKENS)


def last_logits(engine, tokens):
    step, store = whole_rows(1, len(tokens), engine.model.device)
    return engine.model.forward(torch.tensor(tokens), step, store)[-1:, : engine.vocab_size]


def by_definition(engine, params, prompt=PROMPT):
    """The likeliest tokens of the mixed distribution."""
    ids, negative, answer = engine.prompt_ids(prompt), engine.prompt_ids(params.negative_prompt), []
    for _ in range(params.max_tokens):
        p, q = (last_logits(engine, before + answer) for before in (ids, negative))
        answer.append(guided(p, q, torch.tensor([params.cfg_scale])).argmax().item())
    return tuple(answer)


def test_the_answer_is_that_of_the_mixed_distribution(engine):
    expected = by_definition(engine, PARAMS)
    assert engine.generate(PROMPT, PARAMS).tokens == expected
    assert expected != engine.generate(PROMPT, replace(PARAMS, cfg_scale=1)).tokens
    assert engine.pool.book.num_held == 0


def test_prompts_of_several_chunks_and_of_any_lengths(engine):
    for prompt, negative in [(PROMPT, "long " * 60), ("long " * 80, "x")]:
        params = replace(PARAMS, negative_prompt=negative, max_tokens=4)
        assert engine.generate(prompt, params).tokens == by_definition(engine, params, prompt)


def test_at_0_the_negative_prompt_alone_speaks(engine):
    params = replace(PARAMS, cfg_scale=0)
    assert engine.generate(PROMPT, params).tokens == engine.generate("a bad one", replace(PARAMS, cfg_scale=1)).tokens


def test_beside_others_it_says_what_it_says_alone(engine):
    wanted = [PARAMS, replace(PARAMS, cfg_scale=1), replace(PARAMS, temperature=2.0, seed=3), replace(PARAMS, top_k=3)]
    alone = [engine.generate(PROMPT, params).tokens for params in wanted]
    assert [done.tokens for done in engine.generate([PROMPT] * 4, wanted)] == alone
    assert engine.pool.book.num_held == 0


def test_a_negative_prompt_may_be_ids(engine):
    ids = tuple(engine.prompt_ids("a bad one"))
    assert engine.generate(PROMPT, replace(PARAMS, negative_prompt=ids)).tokens == by_definition(engine, PARAMS)


def test_what_is_taken_back_is_taken_back_from_both(engine):
    free = engine.generate(PROMPT, PARAMS)
    done = engine.generate(PROMPT, PARAMS, banned_strings=free.text[3:6])
    turn = next(i for i, pair in enumerate(zip(done.tokens, free.tokens, strict=True)) if len(set(pair)) == 2)
    after = list(done.tokens[: turn + 1])
    rest = replace(PARAMS, max_tokens=3, negative_prompt=tuple(engine.prompt_ids("a bad one") + after))
    assert by_definition(engine, rest, engine.prompt_ids(PROMPT) + after) == done.tokens[turn + 1 : turn + 4]


def test_token_healing_takes_the_last_token_of_both(engine):
    params = replace(PARAMS, token_healing=True, negative_prompt="a bad thing")
    done = engine.generate("a good thing", params)
    assert done.text
    ids, negative = engine.prompt_ids("a good thin"), engine.prompt_ids("a bad thin")
    p, q = (last_logits(engine, before + list(done.tokens[:1])) for before in (ids, negative))
    assert guided(p, q, torch.tensor([2.5])).argmax() == done.tokens[1]
    with pytest.raises(RequestError, match="does not end in the prompt's last token"):
        engine.generate("a good thing", params, negative_prompt="a bad one")


def test_both_have_to_fit_with_their_answers(engine):
    done = engine.generate("p" * 500, PARAMS, negative_prompt="n" * 10, max_tokens=None)
    assert (done.finish_reason, len(done.tokens)) == ("length", PAGE_TOKENS - 10)
    with pytest.raises(RequestError, match=r"have 700 and 300 tokens, but the pool holds 1024 .*, twice"):
        engine.generate("p" * 700, PARAMS, negative_prompt="n" * 300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"negative_prompt": None}, "cfg_scale is 2.5 without a negative_prompt"),
        ({"negative_prompt": ""}, "negative prompt is empty"),
        ({"negative_prompt": 5.0}, "negative_prompt is 5.0, expected token ids"),
        ({"negative_prompt": (999,)}, r"negative_prompt: prompt\[0\] is 999, expected a token id from 0 to 271"),
        ({"cfg_scale": -1.0}, "cfg_scale is -1.0, expected a number from 0 to 100"),
    ],
)
def test_what_cannot_be_served_is_named(engine, fields, message):
    with pytest.raises(RequestError, match=message):
        engine.generate(PROMPT, replace(PARAMS, **fields))
