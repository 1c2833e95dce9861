"""Guessed tokens: whoever guesses, every request says what it says without, in fewer steps where guesses are right."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polybit.cache import PAGE_TOKENS, KVPool
from polybit.errors import KernelError, RequestError
from polybit.generator import Engine, SamplingParams, load
from polybit.generator.forward import Forward
from polybit.generator.graphs import DecodeGraphs
from polybit.generator.sampling import UNUSABLE, Drawn, Guess, SamplingState, distributions
from polybit.generator.scheduler import Limits, Part
from polybit.generator.speculative import ModelDrafter, NgramDrafter, Outlook
from polybit.kernels.pages import FULL, read_bits
from polybit.modules.step import whole_rows
from random_model import write_random_model
from unit.generator.sampling.rows import chi_square
from unit.text.folders import byte_level

VOCABULARY = 260
CONFIG = {"vocab_size": 272, "max_position_embeddings": 1024}
GREEDY = SamplingParams(temperature=0, min_p=0, max_tokens=24, ignore_eos=True)
HOT = replace(GREEDY, temperature=1.5, seed=3)
SHORT = ["one", "two two", "y" * (PAGE_TOKENS - 9)]  # whose answers begin and end in other pages
PROMPTS = [*SHORT, "a longer one " * 30, "a longer one " * 30 + "with another end"]
PARAMS = {
    "greedy": GREEDY,
    "seeded": HOT,
    "filtered": replace(HOT, top_k=6, xtc_probability=0.5, xtc_threshold=0.05),
    "penalised": replace(HOT, repetition_penalty=1.3, frequency_penalty=0.2, dry_multiplier=0.8),
    "mirostat": replace(HOT, mirostat_tau=3.0),
    "stopped": replace(HOT, top_k=2, stop=("a", "e", "\x10"), max_tokens=40),
    "ended": replace(HOT, top_k=3, stop_tokens=tuple(range(0, 256, 9)), min_tokens=11),
    "banned": replace(HOT, top_k=3, banned_strings=tuple(map(chr, range(33, 127, 2)))),
    "chosen": replace(GREEDY, choices=("red fish", "red dish", "blue fish")),
    "begun": replace(HOT, starts_with=("Once upon", "Twice")),
    "regex": replace(HOT, regex="(ab|ba|cc){4,9}[0-9]"),
    "healed": replace(HOT, token_healing=True),
    "reported": replace(HOT, logprobs=2, top_k=9),
}


class Noise:
    """Guesses that are right as often as not, and now and then of tokens that cannot come at all."""

    max_seq_len = num_rows = 10**9

    def __init__(self, num_tokens, expected):
        """`expected`: by prompt, what follows it."""
        self.num_tokens, self._expected, self._random = num_tokens, expected, random.Random(0)

    def guess(self, plan, ready):
        for outlook in ready:
            sequence = outlook.sequence
            following = self._expected.get(tuple(sequence.tokens[: sequence.num_prompt]), ())[sequence.num_generated :]
            for right in following[: outlook.room]:
                guess = self._random.choice([right, right, right, self._random.randrange(VOCABULARY), 270])
                if not outlook.add(Guess(guess)):
                    break


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models that agree on nothing, and a tokenizer."""

    def opened(name, seed):
        folder = byte_level(write_random_model(tmp_path_factory.mktemp(name), CONFIG, seed))
        return load(folder, device="cpu", dtype="float32", backend="reference", cache_tokens=PAGE_TOKENS)

    return opened("model", 0), opened("other", 1)


def pool_of(model, pages, bits=FULL):
    """In which what nobody wrote is NaN."""
    pool = KVPool(model.spec, pages * PAGE_TOKENS, model.dtype, model.device, model.backend, bits)
    if bits == FULL:
        for part in itertools.chain(*(pool.pages(layer) for layer in range(len(model.spec.blocks)))):
            part.fill_(math.nan)
    return pool


@pytest.fixture
def make(models):
    loaded, other = models

    def make(who=None, count=4, pages=16, limits=None, bits=FULL):
        """An engine in which `who` guesses `count` tokens: nobody, the model itself, another, n-grams, or a drafter."""
        model = loaded.model
        guessing = {"itself": model, "another": other.model}.get(who)
        drafter = who
        if guessing is not None:
            drafter = ModelDrafter(Forward(guessing, pool_of(guessing, pages, bits)), count, VOCABULARY)
        elif who == "ngram":
            drafter = NgramDrafter(count)
        limits = limits or Limits(64, 2048)
        pool = pool_of(model, pages, bits)
        return Engine(model, loaded.tokenizer, pool, loaded.folder, limits=limits, drafter=drafter)

    return make


@pytest.fixture(scope="module")
def alone(models):
    """What prompt and parameters give where nobody guesses."""
    known = {}

    def alone(prompt, params):
        if (prompt, params) not in known:
            model = models[0].model
            engine = Engine(model, models[0].tokenizer, pool_of(model, 4), models[0].folder)
            known[prompt, params] = engine.generate(prompt, params)
        return known[prompt, params]

    return alone


def said(completion):
    return completion.text, completion.tokens, completion.finish_reason, completion.stopped_by, completion.suppressed


GUESSERS = ["ngram", "itself", "another", "noise"]


class TestEachSaysWhatItWouldSayWithout:
    @pytest.mark.parametrize("who", GUESSERS)
    @pytest.mark.parametrize("kind", PARAMS)
    def test_in_a_list(self, make, alone, who, kind):
        params = PARAMS[kind]
        expected = [alone(prompt, params) for prompt in SHORT]
        if who == "noise":
            ids = [tuple(make().prompt_ids(prompt)) for prompt in SHORT]
            who = Noise(
                5, {one[:-1] if kind == "healed" else one: e.tokens for one, e in zip(ids, expected, strict=True)}
            )
        engine = make(who, pages=8)
        found = engine.generate(SHORT, [params] * len(SHORT))
        assert list(map(said, found)) == list(map(said, expected))
        assert engine.pool.book.num_held == 0
        guessed = sum(one.accepted_draft_tokens + one.rejected_draft_tokens for one in found)
        assert (guessed == 0) == (kind == "mirostat") or who == "ngram"
        for one, plain in zip(found, expected, strict=True):
            assert [report.model_logprob for report in one.logprobs] == pytest.approx(
                [report.model_logprob for report in plain.logprobs], abs=1e-4
            )

    def test_who_brings_code_or_another_prompt_is_not_guessed_for(self, make):
        class Anything:
            is_done = False

            def allowed(self):
                return None

            def accept(self, token):
                pass

            def rewind(self, num_tokens):
                raise AssertionError("it was looked ahead with the request's own filter")

        extras = [{"own_filter": Anything()}, {"revise": lambda drawn: (drawn.token + 1) % 250}, {}]
        params = [GREEDY, GREEDY, replace(GREEDY, cfg_scale=1.5, negative_prompt="not this")]
        answers = []
        for who in (None, "itself"):
            engine = make(who)
            beside = engine.stream("one", GREEDY)
            streams = [engine.stream("two", one, **extra) for one, extra in zip(params, extras, strict=True)]
            answers.append([said(stream.drain()) for stream in [beside, *streams]])
            assert [stream.completion.rejected_draft_tokens for stream in [beside, *streams]] == [0] * 4
            assert [stream.completion.accepted_draft_tokens for stream in streams] == [0] * 3
            assert (beside.completion.accepted_draft_tokens > 0) == (who is not None)
        assert answers[0] == answers[1]

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_whenever_it_comes_and_whoever_leaves(self, make, alone, data):
        """In pools so small that requests are sent away, and in steps of few tokens."""
        limits = Limits(
            data.draw(st.integers(1, 6)),
            prompt_tokens=data.draw(st.sampled_from([50, 300, 2048])),
            tokens_beside=data.draw(st.sampled_from([30, 512])),
            rows=data.draw(st.sampled_from([3, 8, 64])),
        )
        engine = make(data.draw(st.sampled_from(["ngram", "itself"])), 4, data.draw(st.integers(4, 9)), limits)
        kinds = st.sampled_from(["greedy", "seeded", "banned", "regex", "stopped"])
        asked = data.draw(st.lists(st.tuples(st.sampled_from(PROMPTS), kinds), min_size=1, max_size=8))
        streams = []
        for prompt, kind in asked:
            streams.append((engine.stream(prompt, PARAMS[kind]), alone(prompt, PARAMS[kind])))
            for _ in range(data.draw(st.integers(0, 4))):
                engine.step()
        if data.draw(st.booleans()):
            streams.pop(data.draw(st.integers(0, len(streams) - 1)))[0].close()
        for stream, expected in streams:
            assert said(stream.drain()) == said(expected)
        assert engine.pool.book.num_held == 0

    @pytest.mark.parametrize("bits", ["q8", "q4"])
    @pytest.mark.parametrize("who", ["ngram", "itself"])
    def test_with_a_quantized_cache(self, make, bits, who):
        engines = [make(guessing, bits=read_bits(bits)) for guessing in (None, who)]
        plain, guessed = (engine.generate(SHORT, GREEDY, max_tokens=60) for engine in engines)
        assert list(map(said, guessed)) == list(map(said, plain))
        assert sum(one.accepted_draft_tokens for one in guessed) > 0

    def test_beside_captured_steps(self, models, make, alone, monkeypatch):
        """Which take the passes of next tokens and guesses, the drafter's own among them, and no others."""
        model, captured = models[0].model, []

        def graphs_of(model, pool, wanted=True, guesses=0):
            def capture(work):
                captured.append((pool, len(work())))
                return work

            return DecodeGraphs(model, pool, capture, guesses)

        monkeypatch.setattr("polybit.generator.engine.decode_graphs", graphs_of)
        pool = pool_of(model, 16)
        engine = make(ModelDrafter(Forward(model, pool, graphs_of(model, pool)), 3, VOCABULARY))
        found = engine.generate(SHORT, [HOT] * len(SHORT), max_tokens=14)
        assert [one.tokens for one in found] == [alone(prompt, HOT).tokens[:14] for prompt in SHORT]
        assert (pool, 4) in captured
        assert (engine.pool, 4 * 4) in captured  # four sequences of a token and up to three guesses
        assert engine.generate("one", HOT, max_tokens=2).rejected_draft_tokens == 0
        assert (engine.pool, 1) in captured


class TestGuessesThatAreRight:
    @pytest.mark.parametrize("seed", [3, None])
    @pytest.mark.parametrize("kind", ["greedy", "seeded", "penalised", "filtered", "begun", "regex"])
    def test_take_as_many_steps_less(self, make, kind, seed):
        engine = make("itself", 3)
        stream = engine.stream("one", PARAMS[kind], max_tokens=25, seed=seed)
        while not stream.has_ended:
            engine.step()
            steps = len(stream.completion.tokens)
            assert (steps - 1) % 4 == 0 or stream.has_ended
        done = stream.completion
        assert done.rejected_draft_tokens == 0
        assert done.draft_acceptance == 1
        assert done.accepted_draft_tokens >= 3 * (len(done.tokens) // 4) - 3

    def test_stay_right_on_pages_that_others_filled(self, make):
        """The drafter's keys and values are shared, copied and left with the model's own."""
        engine = make("itself", pages=4, limits=Limits(3, 2048))
        first = engine.generate(PROMPTS, [GREEDY] * len(PROMPTS))
        second = engine.generate(PROMPTS, [GREEDY] * len(PROMPTS))
        assert sum(one.cached_tokens for one in second) > PAGE_TOKENS
        for one in first + second:
            assert one.rejected_draft_tokens == 0
            assert one.accepted_draft_tokens > 10

    def test_repeat_what_the_text_repeats(self, make, alone):
        """A model that goes round in a circle."""
        params = replace(GREEDY, max_tokens=200)
        engine = make("ngram", 4)
        done = engine.generate("one", params)
        assert done.tokens == alone("one", params).tokens
        assert done.accepted_draft_tokens > 20


class TestRoom:
    def test_no_more_than_asked_for(self, make):
        for most in (1, 2, 5):
            done = make("itself", 8).generate("one", GREEDY, max_tokens=most)
            assert len(done.tokens) == most
            assert done.accepted_draft_tokens + done.rejected_draft_tokens <= max(0, most - 2)

    def test_up_to_the_end_of_the_context(self, make):
        engine = make("itself", 8, pages=1)
        done = engine.generate("y" * 200, GREEDY, max_tokens=None)
        assert len(done.tokens) == PAGE_TOKENS - done.prompt_tokens
        assert done.finish_reason == "length"

    def test_a_full_step_has_none(self, make):
        engine = make("itself", limits=Limits(64, 2048, rows=5))
        alone = engine.generate("one", GREEDY)
        together = engine.generate(SHORT, GREEDY)
        assert alone.accepted_draft_tokens > 10
        assert all(one.accepted_draft_tokens + one.rejected_draft_tokens == 0 for one in together)

    def test_a_drafter_that_reaches_less_far_bounds_the_context(self, make):
        class Short(Noise):
            max_seq_len, num_rows = 20, 100

        engine = make(Short(3, {}))
        assert engine.context == 20
        with pytest.raises(RequestError, match="from 0 to 99"):
            engine.generate([100])


class TestADrafterThatFails:
    """In the middle of its guesses, once."""

    class Failing(Noise):
        error = None

        def guess(self, plan, ready):
            super().guess(plan, ready)
            error, self.error = self.error, None
            if error is not None and any(outlook.guesses for outlook in ready):
                raise error
            self.error = error

    @pytest.fixture
    def failing(self, make, alone):
        params = PARAMS["regex"]
        expected = {tuple(make().prompt_ids(prompt)): alone(prompt, params).tokens for prompt in SHORT}
        return self.Failing(4, expected)

    def test_to_whom_the_user_says_stop(self, make, alone, failing):
        engine = make(failing)
        failing.error = KeyboardInterrupt()
        streams = [engine.stream(prompt, PARAMS["regex"]) for prompt in SHORT]
        with pytest.raises(KeyboardInterrupt):
            streams[0].drain()
        for prompt, stream in zip(SHORT, streams, strict=True):
            assert said(stream.drain()) == said(alone(prompt, PARAMS["regex"]))
        assert engine.pool.book.num_held == 0

    def test_for_good(self, make, alone, failing):
        engine = make(failing)
        failing.error = RuntimeError("out of luck")
        with pytest.raises(KernelError, match="a step failed: out of luck"):
            engine.generate(SHORT, PARAMS["regex"])
        assert engine.pool.book.num_held == 0
        assert said(engine.generate("one", PARAMS["regex"])) == said(alone("one", PARAMS["regex"]))


class TestOutlook:
    def outlook(self, make, room=3, **fields):
        engine = make()
        stream = engine.stream("one", replace(GREEDY, **fields))
        engine.step()
        part = Part(stream._sequence, 1, room)
        return Outlook(part), stream

    def test_takes_only_what_can_come(self, make):
        outlook, stream = self.outlook(make, starts_with=("red fish", "red dish"))
        encode = make().tokenizer.encode
        sequence = stream._sequence
        sampled = make().tokenizer.decode(sequence.tokens[-1:])
        rest = "red fish".removeprefix(sampled)
        for token in encode(rest[:3]):
            assert outlook.add(Guess(token))
        assert not outlook.add(Guess(encode("x")[0]))
        assert len(outlook.states) == 4
        before = sequence.sampling.allowed.tolist()
        sequence.look_back()
        sequence.look_back()
        sequence._restrict()
        assert sequence.sampling.allowed.tolist() == before

    def test_an_end_is_left_to_the_model(self, make):
        outlook, stream = self.outlook(make, stop_tokens=(7,), min_tokens=1)
        assert outlook.add(Guess(8))
        assert not outlook.add(Guess(7))
        assert (outlook.guesses, outlook.tried) == ([8], [Guess(8), Guess(7)])
        assert outlook.all_tried() == [Guess(8), Guess(7)]  # in the places of 8 and of what follows it
        stream.close()

    def test_no_guess_where_the_drafter_has_none(self, make):
        outlook, stream = self.outlook(make)
        assert outlook.add(Guess(8))
        assert not outlook.add(Guess(UNUSABLE))
        assert outlook.all_tried() == [Guess(8), None]
        stream.close()

    def test_what_is_unusable_is_told_in_its_own_step(self, make):
        outlook, _ = self.outlook(make)
        assert outlook.add(Guess(5))
        assert outlook.add(Guess(6))
        assert outlook.come_true([Drawn(5), Drawn(UNUSABLE), Drawn(1)]) == [Drawn(5)]
        assert outlook.come_true([Drawn(5), Drawn(6), Drawn(1)]) == [Drawn(5), Drawn(6), Drawn(1)]
        assert outlook.come_true([Drawn(5), Drawn(1), Drawn(1)]) == [Drawn(5), Drawn(1)]
        assert outlook.come_true([Drawn(4), Drawn(6), Drawn(1)]) == [Drawn(4)]


class TestDistribution:
    """Chi-square against probabilities that are computed path by path; exceeded by chance once in ten thousand.

    Of three tokens, so that other models guess right now and then.
    """

    ONLY = dict.fromkeys((token for token in range(VOCABULARY) if token not in (5, 6, 7)), -math.inf)
    COUNT = 900
    LENGTH = 3

    @pytest.mark.parametrize(
        ("who", "fields"),
        [
            ("another", {"seed": None}),
            ("another", {"seed": None, "repetition_penalty": 1.8, "presence_penalty": 0.7, "min_p": 0.2}),
            ("another", {"seed": None, "stop_tokens": (7,), "temperature": 3.0}),
            ("ngram", {"seed": None, "temperature": 5.0, "repetition_penalty": 1.1}),
        ],
    )
    def test_of_whole_answers_is_the_models_own(self, make, models, who, fields):
        params = replace(HOT, **{"logit_bias": self.ONLY, "max_tokens": self.LENGTH, **fields})
        prompt = [5, 7, 6, 5, 7]
        expected = self.paths(models[0].model, prompt, params)
        engine = make(who, 2, limits=Limits(8, 2048))
        random.seed(0)  # which keys of requests without a seed come from
        answers = engine.generate([prompt] * self.COUNT, params)
        number = {path: i for i, path in enumerate(expected)}
        counts = Counter(number[(*answer.tokens, *self.end_of(answer))] for answer in answers)
        assert sum(answer.rejected_draft_tokens for answer in answers) > 50
        assert sum(answer.accepted_draft_tokens for answer in answers) > 10
        degrees = len(expected) - 1
        bound = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson and Hilferty
        assert chi_square(counts, list(expected.values())) < bound

    def end_of(self, answer):
        return () if answer.stopped_by is None else (answer.stopped_by,)

    def paths(self, model, prompt, params):
        """The probability of every answer of up to LENGTH tokens."""
        probs = {(): 1.0}
        for _ in range(self.LENGTH):
            longer = {path: p for path, p in probs.items() if path[-1:] and path[-1] in params.stop_tokens}
            for path in probs.keys() - longer.keys():
                longer |= {(*path, token): probs[path] * q for token, q in self.next(model, prompt, path, params)}
            probs = longer
        return probs

    def next(self, model, prompt, path, params):
        text = [*prompt, *path]
        step, store = whole_rows(1, len(text), model.device)
        logits = model.forward(torch.tensor(text), step, store)[-1:, :VOCABULARY]
        dist = distributions(logits, [SamplingState(params, text)])[0]
        return [(token, dist[token].item()) for token in dist.nonzero().flatten().tolist()]
