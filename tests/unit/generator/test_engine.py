"""The engine over a scripted model (exact control of what is generated) and over a random one (real logits)."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polybit.cache import PAGE_TOKENS, KVPool
from polybit.errors import ConfigError, KernelError, OutOfMemory, RequestError
from polybit.generator import Engine, SamplingParams, load
from polybit.generator.sampling import Drawn
from polybit.generator.scheduler import Limits
from polybit.generator.sequence import Sequence
from polybit.kernels import reference
from polybit.text import Tokenizer
from random_model import write_random_model
from unit.text.folders import byte_level, write

VOCABULARY = 272  # a little more than the tokenizer's 260
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": VOCABULARY})
    byte_level(folder, chat_template=CHAT)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return load(folder, device="cpu")


@pytest.fixture
def scripted(engine, folder):
    """An engine whose model answers prompt "p" with given tokens, then with `x` for ever; notes its steps."""

    def make(answer, cache_tokens=2 * PAGE_TOKENS, limits=None):
        steps = []

        def forward(tokens, step, store, logits_at):
            steps.append(len(tokens))
            rows = []
            for length in step.lengths[: len(logits_at)].tolist():
                row = torch.zeros(VOCABULARY)
                row[answer[length - 1] if length <= len(answer) else tokenizer.id_of("x")] = 9
                rows.append(row)
            return torch.stack(rows) if rows else torch.zeros(0, VOCABULARY)

        tokenizer = Tokenizer.open(folder)
        model = SimpleNamespace(
            spec=engine.model.spec,
            device=torch.device("cpu"),
            dtype=torch.float32,
            max_seq_len=engine.model.max_seq_len,
            forward=forward,
            embed=lambda tokens, step: tokens.float()[:, None],
            stages=(),
            logits=lambda x: x,
        )
        pool = KVPool(model.spec, cache_tokens, model.dtype, model.device, reference)
        made = Engine(model, tokenizer, pool, folder, limits=limits)
        made.steps = steps
        return made

    return make


@pytest.fixture
def say(scripted, folder):
    """An engine that answers "p" with `text`."""
    tokenizer = Tokenizer.open(folder)
    return lambda text, **options: scripted(tokenizer.encode(text), **options)


GREEDY = SamplingParams(temperature=0, max_tokens=8)


class TestEnding:
    def test_at_the_models_end_token(self, say):
        found = say("hi</s>").generate("p", GREEDY)
        assert (found.text, found.finish_reason, found.stopped_by) == ("hi", "stop", 258)
        assert len(found.tokens) == 2

    def test_the_end_token_can_be_ignored(self, say):
        found = say("hi</s>").generate("p", GREEDY, ignore_eos=True)
        assert (found.text, found.finish_reason) == ("hixxxxx", "length")
        shown = say("hi</s>").generate("p", GREEDY, ignore_eos=True, show_special=True)
        assert shown.text == "hi</s>xxxxx"

    def test_at_a_token_of_the_request(self, say):
        engine = say("abc")
        found = engine.generate("p", GREEDY, stop_tokens=engine.tokenizer.id_of("b"))
        assert (found.text, found.finish_reason) == ("a", "stop")

    def test_at_a_string_split_over_tokens(self, say):
        found = say("one##two").generate("p", GREEDY, stop=["##t", "never"])
        assert (found.text, found.finish_reason, found.stopped_by) == ("one", "stop", "##t")

    def test_a_false_start_of_a_stop_string_comes_out(self, say):
        found = say("a##</s>").generate("p", GREEDY, stop="###")
        assert (found.text, found.stopped_by) == ("a##", 258)

    def test_at_max_tokens(self, say):
        found = say("abcdef").generate("p", GREEDY, max_tokens=3)
        assert (found.text, found.finish_reason, len(found.tokens)) == ("abc", "length", 3)

    def test_where_the_context_is_full(self, say):
        found = say("", cache_tokens=PAGE_TOKENS).generate("p", GREEDY, max_tokens=None)
        assert (found.finish_reason, len(found.tokens)) == ("length", PAGE_TOKENS - 1)

    def test_half_a_character_at_the_end_is_marked(self, say):
        assert say("a😀").generate("p", GREEDY, max_tokens=3).text == "a\ufffd"


class TestStream:
    def test_pieces_are_the_completions_text(self, say):
        stream = say("aé😀 b</s>").stream("p", GREEDY, max_tokens=20)
        pieces = list(stream)
        assert pieces == ["a", "é", "😀", " ", "b"]
        assert stream.completion.text == "aé😀 b"

    def test_leaving_early_frees_the_pages(self, say):
        engine = say("abc")
        with engine.stream("p", GREEDY) as stream:
            assert next(stream) == "a"
            assert engine.pool.book.num_held == 1
            assert stream.completion.finish_reason is None
        assert engine.pool.book.num_held == 0
        with pytest.raises(StopIteration):
            next(stream)

    def test_the_last_piece_leaves_nothing_held(self, say):
        engine = say("ab")
        stream = engine.stream("p", GREEDY, max_tokens=2)
        assert [next(stream), next(stream)] == ["a", "b"]
        assert stream.completion.finish_reason == "length"
        assert engine.pool.book.num_held == 0

    def test_two_streams_take_turns(self, engine):
        wanted = SamplingParams(seed=3, max_tokens=12, ignore_eos=True)
        alone = [engine.generate(prompt, wanted).text for prompt in ("one", "two two")]
        streams = [engine.stream(prompt, wanted) for prompt in ("one", "two two")]
        texts = ["", ""]
        for _ in range(13):
            for i, stream in enumerate(streams):
                texts[i] += next(stream, "")
        assert texts == alone

    def test_where_the_pool_is_full_a_newcomer_waits(self, say):
        engine = say("abc", cache_tokens=PAGE_TOKENS)
        first = engine.stream("p", GREEDY)
        assert next(first) == "a"
        second = engine.stream("p", GREEDY)
        num_steps = 0
        while not first.has_ended:
            engine.step()
            assert not second.has_begun
            num_steps += 1
        assert num_steps > 1
        assert second.drain().text == first.drain().text

    def test_a_pool_that_another_engine_holds_fails_the_newcomer_alone(self, say):
        engine = say("abc", cache_tokens=PAGE_TOKENS)
        first = engine.stream("p", GREEDY)
        assert next(first) == "a"
        beside = Engine(engine.model, engine.tokenizer, engine.pool, engine.folder)
        with pytest.raises(OutOfMemory, match=r"1 pages .* another engine holds 1 of its 1; .*cache_tokens"):
            beside.generate("p", GREEDY)
        assert next(first) == "b"

    def test_times_are_told(self, engine):
        found = engine.generate("some prompt", max_tokens=4, ignore_eos=True)
        assert found.prompt_tokens == 11
        assert found.prefill_seconds > 0
        assert found.decode_seconds > 0
        assert found.decode_rate == pytest.approx(3 / found.decode_seconds)


class TestRandomness:
    WANTED = SamplingParams(temperature=1.5, min_p=0, max_tokens=20, ignore_eos=True)

    def test_a_seed_fixes_the_text(self, engine):
        texts = {seed: engine.generate("p", self.WANTED, seed=seed).tokens for seed in (1, 2)}
        assert texts[1] == engine.generate("p", self.WANTED, seed=1).tokens
        assert texts[1] != texts[2]

    def test_without_a_seed_texts_differ(self, engine):
        assert engine.generate("p", self.WANTED).tokens != engine.generate("p", self.WANTED).tokens

    def test_prompts_of_a_list_get_seeds_in_order(self, engine):
        together = engine.generate(["p", "p", "q"], self.WANTED, seed=5)
        alone = [engine.generate(p, self.WANTED, seed=5 + i) for i, p in enumerate(["p", "p", "q"])]
        assert [c.tokens for c in together] == [c.tokens for c in alone]

    def test_a_bad_prompt_in_a_list_fails_before_any_runs(self, say):
        engine = say("ab")
        with pytest.raises(RequestError, match="the prompt is empty"):
            engine.generate(["p", ""], GREEDY)
        assert engine.steps == []


class TestPrefill:
    def test_long_prompts_go_in_chunks(self, say):
        engine = say("", limits=Limits(4, 100))
        engine.generate("p" * 250, GREEDY, max_tokens=2)
        assert engine.steps == [100, 100, 50, 1]

    def test_chunks_do_not_change_the_answer(self, engine):
        prompt = "some text " * 30  # more than one page
        whole = engine.generate(prompt, temperature=0, max_tokens=8, ignore_eos=True)
        pool = KVPool(engine.model.spec, 2 * PAGE_TOKENS, torch.float32, torch.device("cpu"), reference)
        chunked = Engine(engine.model, engine.tokenizer, pool, engine.folder, limits=Limits(4, 37))
        assert chunked.generate(prompt, temperature=0, max_tokens=8, ignore_eos=True).tokens == whole.tokens

    def test_cached_decoding_equals_a_fresh_pass_each_token(self, engine):
        prompt = engine.tokenizer.encode("some text")
        found = list(engine.generate(prompt, temperature=0, max_tokens=6, ignore_eos=True).tokens)
        for i, token in enumerate(found):
            fresh = engine.generate(prompt + found[:i], temperature=0, max_tokens=1, ignore_eos=True)
            assert fresh.tokens == (token,)

    def test_padding_of_the_vocabulary_is_never_sampled(self, scripted):
        engine = scripted([265] * 8)  # no token of the tokenizer has this id
        assert all(token < 260 for token in engine.generate("p", GREEDY).tokens)


class TestChat:
    def test_the_template_makes_the_prompt(self, engine):
        messages = [{"role": "user", "content": "hi"}]
        found = engine.chat(messages, max_tokens=3)
        assert found.prompt_tokens == 1 + len("[user]hi")
        streamed = "".join(engine.stream_chat(messages, seed=1, max_tokens=20))
        assert engine.chat(messages, seed=1, max_tokens=20).text == streamed

    def test_template_variables_reach_it(self, engine):
        messages = [{"role": "user", "content": "hi"}]
        found = engine.chat(messages, max_tokens=1, template_variables={"bos_token": ""})
        assert found.prompt_tokens == len("[user]hi")

    def test_a_model_without_a_template_says_so(self, tmp_path):
        byte_level(write_random_model(tmp_path, {"vocab_size": VOCABULARY}))
        with pytest.raises(ConfigError, match="has no chat template"):
            load(tmp_path, device="cpu").chat([{"role": "user", "content": "hi"}])


class TestBadRequests:
    @pytest.mark.parametrize(
        ("prompt", "reason"),
        [
            ("", "the prompt is empty"),
            ([], "the prompt is empty"),
            ([1, VOCABULARY], rf"prompt\[1\] is {VOCABULARY}, expected a token id from 0 to {VOCABULARY - 1}"),
            ([-1], r"prompt\[0\] is -1"),
            ([1.5], r"prompt\[0\] is 1.5"),
            (5, "the prompt is of type int"),
            (("one", "two"), "give several prompts as a list"),
            ("p" * PAGE_TOKENS, "the prompt has 256 tokens, but the context holds 256"),
        ],
    )
    def test_a_prompt_that_cannot_be_served(self, say, prompt, reason):
        engine = say("", cache_tokens=PAGE_TOKENS)
        with pytest.raises(RequestError, match=reason):
            engine.generate(prompt, GREEDY)
        assert engine.pool.book.num_held == 0

    def test_a_larger_cache_is_advised_where_it_would_help(self, say):
        for cache_tokens, advised in ((PAGE_TOKENS, True), (2 * PAGE_TOKENS, False)):
            engine = say("", cache_tokens=cache_tokens)
            with pytest.raises(RequestError, match="the context holds") as refused:
                engine.generate("p" * 2 * PAGE_TOKENS)
            assert ("--cache-tokens" in str(refused.value)) == advised

    def test_a_token_that_the_model_has_no_row_for_is_named(self, tmp_path):
        byte_level(write_random_model(tmp_path, {"vocab_size": 259}), chat_template=CHAT)
        engine = load(tmp_path, device="cpu")
        for ask in (lambda: engine.generate("a<pad>"), lambda: engine.chat([{"role": "user", "content": "<pad>"}])):
            with pytest.raises(RequestError, match=r"token 259 \('<pad>'\), but the model's last is 258"):
                ask()

    def test_parameters_of_another_type_are_refused(self, say):
        with pytest.raises(RequestError, match="params is of type dict"):
            say("").generate("p", {"top_k": 3})

    def test_other_arguments_of_wrong_types_are_refused(self, engine):
        messages = [{"role": "user", "content": "hi"}]
        for variables in (5, {5: 1}):
            with pytest.raises(RequestError, match=r"template_variables is .*, expected a dict"):
                engine.chat(messages, template_variables=variables)
        for patience in ("x", -1, True):
            with pytest.raises(RequestError, match=r"patience is .*, expected a whole number"):
                engine.stream("hi", patience=patience)
        with pytest.raises(RequestError, match="progress is 5, expected a function"):
            engine.generate(["hi"], progress=5)

    def test_fields_are_checked_before_anything_runs(self, say):
        engine = say("")
        with pytest.raises(RequestError, match="did you mean top_k"):
            engine.stream("p", topk=3)
        assert engine.steps == []

    def test_logits_that_are_no_numbers_end_that_request_only(self, say):
        engine = say("ab")
        forward = engine.model.forward
        engine.model.forward = lambda *inputs: forward(*inputs) * math.nan
        with pytest.raises(KernelError, match="NaN in 260 of 260 logits after 1 tokens"):
            engine.generate("p", GREEDY)
        engine.model.forward = forward
        assert engine.pool.book.num_held == 0
        assert engine.generate("p", GREEDY, max_tokens=2).text == "ab"


class TestLoad:
    def test_the_pool_follows_the_model_or_the_option(self, folder, engine):
        assert engine.context == 512  # the model's
        assert load(folder, device="cpu", cache_tokens=100).context == PAGE_TOKENS

    def test_a_folder_without_tokenizer_fails_before_the_weights(self, tmp_path):
        write_random_model(tmp_path)
        told = []
        with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
            load(tmp_path, device="cpu", progress=lambda done, total: told.append(done))
        assert told == []

    @pytest.mark.parametrize("count", [0, -1, True, 2.5, "many"])
    def test_a_bad_cache_size(self, folder, count):
        with pytest.raises(RequestError, match=f"cache_tokens is {count!r}"):
            load(folder, cache_tokens=count)

    @pytest.mark.parametrize("count", [0, None, 1.5])
    def test_a_bad_batch_size(self, folder, count):
        with pytest.raises(RequestError, match=f"max_batch is {count!r}, expected a whole number of at least 1"):
            load(folder, max_batch=count)

    def test_bos_is_put_in_front_where_the_tokenizer_wants_it(self, tmp_path):
        byte_level(write_random_model(tmp_path, {"vocab_size": VOCABULARY}), add_bos_token=True)
        engine = load(tmp_path, device="cpu")
        assert engine.prompt_ids("hi")[0] == engine.tokenizer.bos_id
        write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": False})
        assert load(tmp_path, device="cpu").prompt_ids("hi")[0] != engine.tokenizer.bos_id


def test_stop_strings_end_the_text_that_is_streamed(folder):
    tokenizer = Tokenizer.open(folder)

    @given(st.lists(st.text("ab#", min_size=1, max_size=3), max_size=2), st.text("ab#", max_size=7))
    def check(stops, answer):
        params = SamplingParams(stop=stops, max_tokens=20)
        sequence = Sequence([0], params, frozenset(tokenizer.eos_ids), tokenizer.detokenizer(), room=20)
        tokens = iter([*tokenizer.encode(answer), tokenizer.eos_id])
        while sequence.finish_reason is None:
            sequence.accept(Drawn(next(tokens)))
        text = "".join(sequence.pieces)
        assert text == sequence.completion().text
        assert answer.startswith(text)
        assert not any(stop in text for stop in stops)

    check()


class TestCacheSize:
    """How large the pool gets where nobody says, and where memory is short."""

    @pytest.fixture
    def long(self, tmp_path):
        return byte_level(write_random_model(tmp_path, {"vocab_size": VOCABULARY, "max_position_embeddings": 100_000}))

    def test_is_bounded_by_default_and_as_asked_otherwise(self, long):
        assert load(long, device="cpu").pool.num_tokens == 8192
        assert load(long, device="cpu", cache_tokens=300).pool.num_tokens == 512

    def test_shrinks_where_memory_is_short_unless_asked_for(self, long, monkeypatch, caplog):
        monkeypatch.setattr("polybit.model.machine.free_ram", lambda: 45_000_000)
        size = load(long, device="cpu").pool.num_tokens
        assert 1024 <= size < 8192
        assert f"the cache holds {size} tokens instead of 8192" in caplog.text
        with pytest.raises(OutOfMemory, match=r"--cache-tokens \d+ \(cache_tokens=\d+\) would fit"):
            load(long, device="cpu", cache_tokens=8192)
