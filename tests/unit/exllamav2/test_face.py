"""exllamav2's interface: what it takes, what it gives back, and what it refuses by name."""

import asyncio
import inspect
import math
import threading

import pytest
import torch

import exllamav2
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import (
    ExLlamaV2BaseGenerator,
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicGeneratorAsync,
    ExLlamaV2DynamicJob,
    ExLlamaV2DynamicJobAsync,
    ExLlamaV2Sampler,
    ExLlamaV2SelectFilter,
    ExLlamaV2StreamingGenerator,
)
from polybit import generator
from polybit.errors import ConfigError, OutOfMemory, PolybitError, RequestError
from polybit.generator import SamplingParams
from polybit.generator.sampling.steps import steps_of
from random_model import write_random_model
from unit.text.folders import byte_level, write

GREEDY = ExLlamaV2Sampler.Settings.greedy()
HOT = ExLlamaV2Sampler.Settings(temperature=3.0, top_k=0, top_p=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": 272})
    return byte_level(folder)


@pytest.fixture(scope="module")
def parts(folder):
    config = ExLlamaV2Config(str(folder))
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache(model, lazy=True)
    model.load_autosplit(cache)
    return {"model": model, "cache": cache, "tokenizer": ExLlamaV2Tokenizer(config)}


@pytest.fixture
def dynamic(parts):
    return ExLlamaV2DynamicGenerator(**parts)


@pytest.fixture(scope="module")
def engine(folder):
    return generator.load(folder)


class TestConfig:
    def test_a_directory_is_read_at_once(self, folder):
        config = ExLlamaV2Config(str(folder))
        assert (config.max_seq_len, config.vocab_size, config.num_hidden_layers) == (512, 272, 2)
        assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)

    def test_or_later(self, folder):
        config = ExLlamaV2Config()
        config.model_dir = str(folder)
        config.prepare()
        assert config.hidden_size == 64

    def test_settings_reach_the_model(self, folder):
        config = ExLlamaV2Config(str(folder))
        config.max_seq_len = 100
        config.scale_pos_emb = 2.0
        options = config.load_options()
        assert (options.max_seq_len, options.rope_scale) == (100, 2.0)
        assert options.rope_alpha is options.rope_yarn is None
        assert options.graphs
        config.no_graphs = True
        assert not config.load_options().graphs
        config.alt_rope_method, config.yarn_rope_factor, config.scale_pos_emb = "yarn", 4.0, 1.0
        assert config.load_options().rope_yarn == 4.0

    def test_misspelt_settings_are_errors(self, folder):
        with pytest.raises(AttributeError, match="max_sequence_len"):
            ExLlamaV2Config(str(folder)).max_sequence_len = 4096

    def test_what_it_cannot_do_is_named(self, folder):
        config = ExLlamaV2Config(str(folder))
        config.load_in_q4 = True
        with pytest.raises(RequestError, match="load_in_q4"):
            ExLlamaV2(config).load()

    def test_errors_are_polybits(self, tmp_path):
        with pytest.raises(ConfigError, match="is not a folder"):
            ExLlamaV2Config(str(tmp_path / "none"))
        with pytest.raises(RequestError, match="model_dir is not set"):
            ExLlamaV2Config().prepare()


class TestModelAndCache:
    def test_progress_is_told(self, folder):
        told = []
        model = ExLlamaV2(ExLlamaV2Config(str(folder)))
        model.load(callback=lambda done, total: told.append((done, total)))
        assert told[-1] == (4, 4)
        assert model.loaded
        model.unload()
        assert not model.loaded

    def test_a_split_is_polybits(self, folder, monkeypatch):
        asked = []

        def told(source, tell, cache_tokens, machine):
            asked.append((source.options.gpu_split, cache_tokens, machine))

        monkeypatch.setattr("exllamav2.model.load", told)
        ExLlamaV2(ExLlamaV2Config(str(folder))).load(gpu_split=[10, 22.5])
        assert asked == [("10,22.5", 0, None)]
        with pytest.raises(RequestError, match="gpu_split is 'auto', expected a list of GiB"):
            ExLlamaV2(ExLlamaV2Config(str(folder))).load(gpu_split="auto")

    @pytest.mark.parametrize(("reserve", "left"), [(None, 0), (1000, 1000), ([2000, 1], 2000)])
    def test_autosplit_plans_for_the_cache_and_what_is_reserved(self, folder, monkeypatch, reserve, left):
        monkeypatch.setattr("polybit.model.machine.free_ram", lambda: 1 << 30)
        planned = []
        real = exllamav2.model.load
        monkeypatch.setattr(
            "exllamav2.model.load", lambda *arguments: (planned.append(arguments[2:]), real(*arguments))[1]
        )
        model = ExLlamaV2(ExLlamaV2Config(str(folder)))
        cache = ExLlamaV2Cache(model, lazy=True, batch_size=2, max_seq_len=300)
        model.load_autosplit(cache, reserve_vram=reserve)
        ((tokens, machine),) = planned
        assert (tokens, machine.budgets[0].free) == (768, (1 << 30) - left)
        assert cache.pool.num_tokens == 768

    def test_autosplit_says_what_does_not_fit(self, folder):
        model = ExLlamaV2(ExLlamaV2Config(str(folder)))
        with pytest.raises(OutOfMemory, match="can be used; what helps:"):
            model.load_autosplit(ExLlamaV2Cache(model, lazy=True), reserve_vram=1 << 60)

    def test_a_cache_that_is_not_lazy_needs_a_loaded_model(self, folder):
        model = ExLlamaV2(ExLlamaV2Config(str(folder)))
        with pytest.raises(RequestError, match="not loaded"):
            ExLlamaV2Cache(model)
        model.load()
        assert ExLlamaV2Cache(model, max_seq_len=256).footprint() == [2 * 256 * 2 * 2 * 2 * 16 * 4]

    def test_a_lazy_cache_is_made_at_first_use(self, folder):
        model = ExLlamaV2(ExLlamaV2Config(str(folder)))
        cache = ExLlamaV2Cache(model, lazy=True, batch_size=2, max_seq_len=256)
        model.load()
        assert cache.pool.num_tokens == 512

    @pytest.mark.parametrize(("kind", "bits"), [("Q4", 5), ("Q6", 7), ("Q8", 9)])  # 16 / 16 for scales
    def test_quantized_caches(self, kind, bits, folder, monkeypatch):
        planned = []
        real = exllamav2.model.load
        monkeypatch.setattr(
            "exllamav2.model.load", lambda source, *rest: (planned.append(source.options.cache), real(source, *rest))[1]
        )
        config = ExLlamaV2Config(str(folder))
        model = ExLlamaV2(config)
        cache = getattr(exllamav2, f"ExLlamaV2Cache_{kind}")(model, lazy=True, max_seq_len=256)
        model.load_autosplit(cache)
        assert planned == [kind.lower()]
        assert cache.footprint() == [2 * 256 * 2 * 2 * 2 * 16 * bits // 8]
        text = ExLlamaV2DynamicGenerator(model, cache, ExLlamaV2Tokenizer(config)).generate("one", 8)
        assert len(text) > len("one")

    @pytest.mark.parametrize(("kind", "other"), [("8bit", "ExLlamaV2Cache_Q8"), ("TP", "ExLlamaV2Cache")])
    def test_other_caches_say_what_to_use(self, kind, other, parts):
        with pytest.raises(RequestError, match=f"ExLlamaV2Cache_{kind} .*use {other}"):
            getattr(exllamav2, f"ExLlamaV2Cache_{kind}")(parts["model"], lazy=True)


class TestTokenizer:
    def test_rows_are_padded_on_the_left(self, parts):
        ids, offsets = parts["tokenizer"].encode(["abc", "a"], return_offsets=True)
        assert ids.shape == (2, 3)
        assert ids[1].tolist() == [259, 259, ids[0, 0].item()]
        assert offsets.tolist() == [0, -2]
        assert parts["tokenizer"].decode(ids) == ["abc", "a"]
        assert parts["tokenizer"].padding_mask(ids)[1].tolist() == [-math.inf, -math.inf, 0]

    def test_special_tokens_count_on_request(self, parts):
        tokenizer = parts["tokenizer"]
        assert tokenizer.encode("</s>").shape == (1, 4)
        ids = tokenizer.encode("</s>", add_bos=True, add_eos=True, encode_special_tokens=True)
        assert ids.tolist() == [[257, 258, 258]]
        assert tokenizer.decode(ids[0]) == ""
        assert tokenizer.decode(ids[0], decode_special_tokens=True) == "<s></s></s>"

    def test_small_questions(self, parts):
        tokenizer = parts["tokenizer"]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (257, 258, 259)
        assert tokenizer.num_tokens("</s>") == 4
        assert tokenizer.single_id("</s>") == 258
        assert tokenizer.single_token(258).tolist() == [[258]]
        assert tokenizer.get_vocab_size() == 260
        assert tokenizer.encode("").shape == (1, 0)

    def test_tables_of_the_vocabulary(self, parts):
        tokenizer = parts["tokenizer"]
        a, space_a = tokenizer.single_id("a"), tokenizer.single_id("Ġa")
        pieces = tokenizer.get_id_to_piece_list()
        assert (len(pieces), pieces[a], pieces[space_a], pieces[258]) == (260, "a", " a", "")
        assert tokenizer.get_id_to_piece_list(include_special_tokens=True)[258] == "</s>"
        assert tokenizer.get_piece_to_id_dict()[" a"] == space_a
        space = tokenizer.single_id("Ġ")
        assert tokenizer.get_prefix_to_ids_dict()[" "] == tokenizer.get_prefix_id_to_ids_dict()[space]
        assert {space, space_a} <= set(tokenizer.get_prefix_to_ids_dict()[" "])
        ords = tokenizer.get_id_to_ord_list()
        assert (ords[a], ords[space_a]) == (97, -1)
        assert tokenizer.get_char_trie().children[" "].children["a"].leaf == [space_a]
        assert set(tokenizer.get_char_trie_ci().children["a"].leaf) == {a, tokenizer.single_id("A")}
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
        assert torch.equal(tokenizer.cached_encode_str("abc"), tokenizer.encode("abc"))

    def test_no_padding_token_is_minus_one(self, tmp_path):
        byte_level(write_random_model(tmp_path), specials=(), bos_token=None, eos_token=None)
        assert ExLlamaV2Tokenizer(ExLlamaV2Config(str(tmp_path))).pad_token_id == -1


class TestDynamicGenerator:
    def test_the_text_is_polybits(self, dynamic, engine):
        ids = engine.tokenizer.encode("some prompt")
        expected = engine.generate(ids, temperature=0, min_p=0, max_tokens=12, ignore_eos=True).text
        assert dynamic.generate("some prompt", 12, gen_settings=GREEDY) == "some prompt" + expected
        assert dynamic.generate("some prompt", 12, gen_settings=GREEDY, completion_only=True) == expected

    def test_the_defaults_are_the_originals(self, dynamic, engine):
        ids = engine.tokenizer.encode("some prompt")
        originals = SamplingParams(temperature=0.8, top_k=50, top_p=0.8, min_p=0, repetition_penalty=1.025)
        expected = engine.generate(ids, originals, max_tokens=12, seed=1, ignore_eos=True)
        assert dynamic.generate("some prompt", 12, seed=1, completion_only=True) == expected.text

    def test_prompts_of_a_list_get_seeds_in_order(self, dynamic):
        texts = dynamic.generate(["one", "two"], 8, seed=3)
        assert texts == [dynamic.generate("one", 8, seed=3), dynamic.generate("two", 8, seed=4)]

    def test_each_prompt_may_have_its_settings(self, dynamic):
        texts = dynamic.generate(["one", "one"], 8, seed=3, gen_settings=[GREEDY, HOT])
        assert texts[0] == dynamic.generate("one", 8, gen_settings=GREEDY)
        assert texts[1] != texts[0]
        with pytest.raises(RequestError, match=r"gen_settings is .*, expected a list of 2"):
            dynamic.generate(["one", "two"], 8, gen_settings=[GREEDY])

    def test_stop_conditions_are_ids_and_texts(self, dynamic):
        wanted = {"seed": 1, "gen_settings": HOT, "completion_only": True}
        text = dynamic.generate("some", 12, **wanted)
        stop = text[3:5]
        assert dynamic.generate("some", 12, stop_conditions=[stop, 300], **wanted) == text[: text.index(stop)]

    def test_special_tokens_of_the_prompt_count_on_request(self, dynamic):
        texts = {dynamic.generate("</s>", 6, seed=1, gen_settings=HOT, encode_special_tokens=s) for s in (True, False)}
        assert len(texts) == 2

    def test_an_abort_gives_none_and_frees_everything(self, dynamic, parts):
        event = threading.Event()
        event.set()
        assert dynamic.generate("one", 8, abort_event=event) is None
        assert dynamic.num_remaining_jobs() == 0
        assert parts["cache"].pool.book.num_held == 0

    def test_too_long_for_the_cache_is_refused_with_figures(self, dynamic):
        with pytest.raises(RequestError, match="are 513 tokens together, but the cache holds 512"):
            dynamic.generate("p" * 13, 500)
        assert dynamic.num_remaining_jobs() == 0

    @pytest.mark.parametrize(
        "argument",
        [
            {"filters": [object()]},
            {"embeddings": [object()]},
        ],
    )
    def test_what_it_cannot_do_is_named(self, dynamic, argument):
        with pytest.raises(RequestError, match=next(iter(argument))):
            dynamic.generate("one", 8, **argument)
        assert dynamic.num_remaining_jobs() == 0

    def test_last_results_come_along_on_request(self, dynamic):
        text, last = dynamic.generate("one", 8, seed=3, return_last_results=True)
        assert text == dynamic.generate("one", 8, seed=3)
        assert (last["eos"], last["new_tokens"]) == (True, 8)
        texts, last = dynamic.generate(["one", "two"], 8, seed=3, return_last_results=True)
        assert [text[:3] for text in texts] == ["one", "two"]
        assert [one["full_completion"] for one in last] == [text[3:] for text in texts]

    def test_a_jobs_length_may_be_bounded(self, parts):
        dynamic = ExLlamaV2DynamicGenerator(**parts, max_seq_len=100)
        with pytest.raises(RequestError, match="101 tokens together, but the cache holds 100"):
            dynamic.generate("p", 100)

    def test_what_has_no_meaning_here(self, dynamic):
        dynamic.set_loras(None)
        dynamic.defrag_cache()
        with pytest.raises(RequestError, match="loras"):
            dynamic.set_loras([object()])
        with pytest.raises(RequestError, match="num_free"):
            dynamic.print_page_list()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"use_ngram_draft": True}, "ngram_draft is True beside the draft model"),
            ({"num_draft_tokens": 99}, "num_draft_tokens is 99, expected a whole number from 1 to 32"),
            ({"draft_cache": None}, "draft_cache is not given, expected"),
            ({"draft_cache": "small"}, "draft_cache is of 256 tokens, expected .* 512 tokens"),
        ],
    )
    def test_so_is_a_draft_that_cannot_be(self, parts, wrong, message):
        cache = ExLlamaV2Cache(parts["model"], max_seq_len=256 if wrong.get("draft_cache") == "small" else 512)
        given = {"draft_model": parts["model"], "draft_cache": cache} | wrong
        if given["draft_cache"] == "small":
            given["draft_cache"] = cache
        with pytest.raises(PolybitError, match=message):
            ExLlamaV2DynamicGenerator(**parts, **given)

    @pytest.mark.parametrize("by", ["a model", "n-grams"])
    def test_drafts_change_no_text_and_are_counted(self, parts, dynamic, by):
        expected = dynamic.generate("one one one", 24, gen_settings=GREEDY)
        cache = ExLlamaV2Cache(parts["model"])
        given = {"draft_model": parts["model"], "draft_cache": cache} if by == "a model" else {"use_ngram_draft": True}
        drafting = ExLlamaV2DynamicGenerator(**parts, **given, num_draft_tokens=3)
        found, last = drafting.generate("one one one", 24, gen_settings=GREEDY, return_last_results=True)
        assert found == expected
        assert last["accepted_draft_tokens"] > 0
        assert last["rejected_draft_tokens"] >= 0
        _, plain = dynamic.generate("one", 4, gen_settings=GREEDY, return_last_results=True)
        assert "accepted_draft_tokens" not in plain


def run(dynamic):
    """All results until the queue is empty."""
    results = []
    while dynamic.num_remaining_jobs():
        results += dynamic.iterate()
    return results


class TestJobs:
    def job(self, parts, text, **options):
        wanted = {"max_new_tokens": 10, "gen_settings": HOT, "seed": 1, **options}
        return ExLlamaV2DynamicJob(parts["tokenizer"].encode(text), **wanted)

    def test_results_add_up_to_the_completion(self, dynamic, parts):
        job = self.job(parts, "some prompt", identifier="mine")
        assert dynamic.enqueue(job) == 1
        results = run(dynamic)
        last = results[-1]
        assert [result["stage"] for result in results[:3]] == ["started", "prefill", "streaming"]
        assert (results[1]["curr_progress"], results[1]["max_progress"]) == (11, 11)
        assert {"started", "prefill", "streaming"} == {result["stage"] for result in results}
        assert "".join(result.get("text", "") for result in results) == job.full_completion == last["full_completion"]
        assert sum(result["token_ids"].shape[1] for result in results if "token_ids" in result) == 10
        assert all(result["identifier"] == "mine" and result["serial"] == 1 for result in results)
        assert [result["eos"] for result in results] == [False] * (len(results) - 1) + [True]
        assert (last["eos_reason"], last["new_tokens"], last["prompt_tokens"]) == ("max_new_tokens", 10, 11)
        assert dynamic.iterate() == []

    def test_a_stop_is_explained(self, dynamic, parts):
        text = dynamic.generate("some", 10, seed=1, gen_settings=HOT, completion_only=True)
        dynamic.enqueue(self.job(parts, "some", stop_conditions=[text[3:5]]))
        last = run(dynamic)[-1]
        assert (last["eos_reason"], last["eos_triggering_string"]) == ("stop_string", text[3:5])

    def test_a_stop_token_is_explained(self, dynamic, parts):
        dynamic.enqueue(self.job(parts, "some", stop_conditions=list(range(260))))
        last = run(dynamic)[-1]
        assert (last["eos_reason"], last["new_tokens"]) == ("stop_token", 0)
        assert last["eos_triggering_token_str"] == parts["tokenizer"].inner.token_of(last["eos_triggering_token_id"])

    def test_cancelling_frees_its_pages(self, dynamic, parts):
        jobs = [self.job(parts, "one"), self.job(parts, "two")]
        assert dynamic.enqueue(jobs) == [1, 2]
        assert {result["job"] for result in dynamic.iterate()} == set(jobs)
        assert parts["cache"].pool.book.num_held == 2
        dynamic.cancel(jobs[0])
        dynamic.cancel(jobs[0])  # again: it is gone already
        assert parts["cache"].pool.book.num_held == 1
        assert {result["job"] for result in dynamic.iterate()} == {jobs[1]}
        dynamic.clear_queue()
        assert dynamic.num_remaining_jobs() == parts["cache"].pool.book.num_held == 0

    def test_all_that_fit_run_together(self, dynamic, parts):
        jobs = [self.job(parts, text, seed=i) for i, text in enumerate(["one", "two", "three"])]
        dynamic.enqueue(jobs)
        assert run(dynamic)
        alone = [
            dynamic.generate(text, 10, gen_settings=HOT, seed=i, completion_only=True)
            for i, text in enumerate(["one", "two", "three"])
        ]
        assert [job.full_completion for job in jobs] == alone

    @pytest.mark.parametrize("limit", [{"max_batch_size": 1}, {"paged": False}])
    def test_or_one_at_a_time(self, parts, limit):
        dynamic = ExLlamaV2DynamicGenerator(**parts, **limit)
        dynamic.enqueue([self.job(parts, "one"), self.job(parts, "two")])
        ended = [result["serial"] for result in run(dynamic) if result["stage"] == "started" or result["eos"]]
        assert ended == [1, 1, 2, 2]

    def test_what_others_have_read_is_told(self, dynamic, parts):
        dynamic.reset_page_table()
        text = "the same beginning " * 20
        pages = [self.last(dynamic, parts, text)["cached_pages"] for _ in range(2)]
        assert pages == [0, 1]
        dynamic.reset_page_table()
        assert self.last(dynamic, parts, text)["cached_tokens"] == 0

    def last(self, dynamic, parts, text):
        dynamic.enqueue(self.job(parts, text))
        return run(dynamic)[-1]

    def test_tokens_without_text_are_held_at_the_end(self, dynamic, parts):
        text = dynamic.generate("some", 10, seed=1, gen_settings=HOT, completion_only=True)
        dynamic.enqueue(self.job(parts, "some", stop_conditions=[text[:2]]))
        results = run(dynamic)
        assert all("text" not in result and "token_ids" not in result for result in results)
        assert results[-1]["held"]["token_ids"].shape[1] == results[-1]["new_tokens"] > 0

    def test_a_job_that_fails_raises_and_the_others_go_on(self, dynamic, parts, monkeypatch):
        jobs = [self.job(parts, text) for text in ("one", "bad!", "two")]
        model, bad = type(parts["model"].inner), parts["tokenizer"].single_id("!")
        forward = model.forward

        def spoiled(self, tokens, step, pool, logits_at):
            logits = forward(self, tokens, step, pool, logits_at).clone()
            logits[tokens[logits_at] == bad] = math.nan
            return logits

        monkeypatch.setattr(model, "forward", spoiled)
        dynamic.enqueue(jobs)
        results = dynamic.iterate()
        with pytest.raises(PolybitError, match="NaN"):
            dynamic.iterate()
        results += run(dynamic)
        assert {result["serial"] for result in results if result["eos"]} == {1, 3}
        assert parts["cache"].pool.book.num_held == 0

    @pytest.mark.parametrize(
        ("ids", "message"),
        [(torch.ones(3, 3), "3 rows"), ([torch.ones(1, 3)] * 3, "3 rows"), ("text", "a tensor of ids"), ([], "0 rows")],
    )
    def test_only_a_prompt_or_a_pair(self, ids, message):
        with pytest.raises(RequestError, match=f"input_ids .*{message}"):
            ExLlamaV2DynamicJob(ids, 5)

    def test_its_texts_can_be_seen(self, dynamic, parts):
        job = self.job(parts, "some")
        (before,) = job.sequences
        assert torch.equal(before.sequence_ids, parts["tokenizer"].encode("some"))
        assert (job.new_tokens, job.cached_tokens, job.cached_pages) == (0, 0, 0)
        dynamic.enqueue(job)
        run(dynamic)
        (after,) = job.sequences
        assert torch.equal(after.input_ids, before.sequence_ids)
        assert after.sequence_ids.shape == (1, 4 + job.new_tokens) == (1, 14)
        assert parts["tokenizer"].decode(after.sequence_ids[0, 4:]) == job.full_completion


class TestText:
    """What a job asks of its text and is told of its tokens."""

    def results(self, dynamic, **options):
        ids = dynamic.tokenizer.encode("one")
        dynamic.enqueue(ExLlamaV2DynamicJob(ids, 20, gen_settings=GREEDY, **options))
        told = []
        while dynamic.num_remaining_jobs():
            told += dynamic.iterate()
        return [result for result in told if result["stage"] == "streaming"]

    def test_banned_strings_are_taken_back_and_their_tokens_never_told(self, dynamic):
        text = self.results(dynamic)[-1]["full_completion"]
        told = self.results(dynamic, banned_strings=[text[4:7].upper()])
        assert told[-1]["full_completion"][:4] == text[:4]
        assert text[4:7].lower() not in told[-1]["full_completion"].lower()
        assert text[4:7] in "".join(result.get("suppressed_text", "") for result in told)
        gone = [result["suppressed_tokens"][0].tolist() for result in told if "suppressed_tokens" in result]
        assert dynamic.tokenizer.decode(gone[0]).endswith(text[4:7])
        tokens = [token for result in told if "token_ids" in result for token in result["token_ids"][0].tolist()]
        assert dynamic.tokenizer.decode(tokens) == told[-1]["full_completion"]

    def test_no_stop_token_before_min_new_tokens(self, dynamic):
        first = dynamic.tokenizer.encode(self.results(dynamic)[-1]["full_completion"])[0, 0].item()
        assert self.results(dynamic, stop_conditions=[first])[-1]["new_tokens"] == 0
        assert self.results(dynamic, stop_conditions=[first], min_new_tokens=3)[-1]["new_tokens"] >= 3

    def test_token_healing(self, dynamic, engine):
        healed = dynamic.generate("one ", 5, gen_settings=GREEDY, token_healing=True, completion_only=True)
        expected = engine.generate("one ", max_tokens=5, temperature=0, ignore_eos=True, token_healing=True)
        assert healed == expected.text

    def test_probabilities(self, dynamic):
        for result in self.results(dynamic, return_probs=True, return_top_tokens=2):
            if "token_ids" in result:
                count = result["token_ids"].shape[1]
                assert torch.equal(result["token_probs"], torch.ones(1, count))
                assert torch.equal(result["top_k_tokens"][..., 0], result["token_ids"])
                assert result["top_k_probs"].tolist() == [[[1, 0]] * count]

    def test_logits(self, dynamic):
        for result in self.results(dynamic, return_logits=True):
            if "token_ids" in result:
                assert torch.equal(result["logits"].argmax(-1), result["token_ids"])

    def test_what_is_held_at_the_end_is_told_like_the_rest(self, dynamic):
        text = self.results(dynamic)[-1]["full_completion"]
        asked = {"return_probs": True, "return_top_tokens": 2, "return_logits": True}
        last = self.results(dynamic, stop_conditions=[text[4:7]], **asked)[-1]
        assert last["held"]["text"].startswith(text[4:7])
        count = last["held"]["token_ids"].shape[1]
        shapes = {name: tuple(last["held"][name].shape) for name in ("token_probs", "top_k_tokens", "logits")}
        assert shapes == {"token_probs": (1, count), "top_k_tokens": (1, count, 2), "logits": (1, count, 260)}


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("temperature", -1, "a number from 0 to 100"),
            ("top_k", 1.5, "an integer from 0"),
            ("token_repetition_range", -2, "an integer from -1"),
            ("token_repetition_penalty", 0, "a number above 0"),
            ("mirostat_tau", 0, "a number above 0"),
            ("mirostat", 1, "True or False"),
            ("min_p", math.nan, "a number from 0 to 1"),
            ("dry_base", 0.5, "a number from 1 to 10"),
            ("token_bias", [1.0], "a tensor"),
            ("token_bias", torch.zeros(2, 3), "a tensor"),
        ],
    )
    def test_values_out_of_range_are_named(self, name, value, expected):
        with pytest.raises(RequestError, match=rf"Settings: {name} is .*{expected}"):
            ExLlamaV2Sampler.Settings(**{name: value}).params()

    def test_the_defaults_are_the_originals(self):
        params = SamplingParams(**ExLlamaV2Sampler.Settings().params())
        assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 50, 0.8, 0.0)
        assert (params.repetition_penalty, params.penalty_range, params.penalty_decay) == (1.025, 0, 0)
        on = [step.name for step in steps_of(params)]
        assert on == ["penalties", "temperature", "top_k", "top_p"]

    @pytest.mark.parametrize(
        ("settings", "fields"),
        [
            ({"token_repetition_range": 64, "token_repetition_decay": 8}, {"penalty_range": 64, "penalty_decay": 8}),
            ({"token_repetition_range": 0}, {"repetition_penalty": 1.0}),
            ({"token_repetition_range": 0, "token_repetition_decay": 4}, {"penalty_range": 1, "penalty_decay": 4}),
            ({"token_presence_penalty": 0.1}, {"presence_penalty": 0.1}),
            ({"token_frequency_penalty": 0.1}, {"frequency_penalty": 0.1}),
            ({"token_bias": torch.tensor([0, 1.5, -math.inf])}, {"logit_bias": {1: 1.5, 2: -math.inf}}),
            ({"dry_multiplier": 0.8}, {"dry_multiplier": 0.8, "dry_max_match": 20}),
            ({"dry_multiplier": 0.8, "dry_sequence_breakers": {7}}, {"dry_breakers": (), "dry_breaker_tokens": (7,)}),
            ({"smoothing_factor": 0.3}, {"smoothing_factor": 0.3}),
            ({"top_a": 0.1}, {"top_a": 0.1}),
            ({"tfs": 0.9}, {"tfs": 0.9}),
            ({"typical": 0.9}, {"typical": 0.9}),
            ({"tfs": 0, "typical": 1.5}, {"tfs": 1.0, "typical": 1.0}),
            ({"mirostat": True, "mirostat_tau": 2.0}, {"mirostat_tau": 2.0, "mirostat_eta": 0.1}),
            ({"mirostat_tau": 2.0}, {"mirostat_tau": 0.0}),
            ({"mirostat": True, "mirostat_mu": 4.0}, {"mirostat_mu": 4.0}),
            ({"temperature_last": True}, {"temperature_last": True}),
            ({"min_temp": 0.5, "max_temp": 2.0}, {"min_temperature": 0.5, "max_temperature": 2.0}),
            ({"min_temp": 0.5}, {"max_temperature": 0.0}),
            ({"xtc_probability": 0.5}, {"xtc_probability": 0.5, "xtc_spared": ("\n",)}),
            ({"xtc_ignore_tokens": [3]}, {"xtc_spared": (), "xtc_spared_tokens": (3,)}),
            ({"skew": 0.2}, {"skew": 0.2}),
        ],
    )
    def test_each_setting_is_a_parameter(self, settings, fields):
        params = SamplingParams(**ExLlamaV2Sampler.Settings(**settings).params())
        assert {name: getattr(params, name) for name in fields} == fields

    def test_tokens_can_be_disallowed_and_allowed(self, parts, dynamic):
        tokenizer, settings = parts["tokenizer"], ExLlamaV2Sampler.Settings.greedy()
        settings.allow_tokens(tokenizer, [64, "b"])
        text = dynamic.generate("one", 20, gen_settings=settings, completion_only=True)
        allowed = set(tokenizer.decode([64]) + "b")
        assert set(text) <= allowed
        settings.disallow_tokens(tokenizer, [64])
        assert dynamic.generate("one", 20, gen_settings=settings, completion_only=True) == "b" * 20
        with pytest.raises(RequestError, match="'bbb' is no token"):
            settings.allow_tokens(tokenizer, ["bbb"])

    def test_one_step_by_itself(self, parts):
        logits, ids = torch.tensor([[[0.0, 3.0, 1.0, 2.0]], [[5.0, 0.0, 1.0, 2.0]]]), torch.tensor([[1], [2]])
        greedy = ExLlamaV2Sampler.Settings.greedy()
        tokens, top, top_probs, probs, ended = ExLlamaV2Sampler.sample(
            logits, greedy, ids, 0.5, parts["tokenizer"], return_top_tokens=2, blocked_tokens=[0]
        )
        assert (tokens.tolist(), probs.tolist(), ended) == ([[1], [3]], [[1], [1]], False)
        assert (top[:, 0, 0].tolist(), top_probs.tolist()) == ([1, 3], [[[1, 0]], [[1, 0]]])
        warm = ExLlamaV2Sampler.Settings(token_repetition_penalty=1.0, temperature=1.0, top_k=2, top_p=0)
        tokens, *_ = ExLlamaV2Sampler.sample(logits, warm, ids, 0.99, parts["tokenizer"])
        assert tokens.tolist() == [[3], [3]]  # the last of the two that are left, in the order of ids
        mixed = ExLlamaV2Sampler.Settings.greedy(cfg_scale=2.0)
        tokens, *_ = ExLlamaV2Sampler.sample(logits, mixed, ids, 0.5, parts["tokenizer"])
        assert tokens.tolist() == [[1]]
        with pytest.raises(RequestError, match="expected 2 rows of logits, not 1"):
            ExLlamaV2Sampler.sample(logits[:1], mixed, ids, 0.5, parts["tokenizer"])

    def test_one_step_within_filters_and_a_healed_prompt(self, parts):
        tokenizer, logits, ids = parts["tokenizer"], torch.zeros(1, 1, 260), torch.zeros(1, 1, dtype=torch.long)
        select = ExLlamaV2SelectFilter(parts["model"], tokenizer, ["a"])
        tokens, *_, ended = ExLlamaV2Sampler.sample(logits, GREEDY, ids, 0.5, tokenizer, filters=[select])
        assert (tokenizer.decode(tokens[0]), ended) == ("a", True)
        b = tokenizer.encode("b")
        tokens, *_, ended = ExLlamaV2Sampler.sample(logits, GREEDY, ids, 0.5, tokenizer, prefix_token=b)
        assert (tokens.tolist(), ended) == (b.tolist(), False)

    def test_misspelt_settings_are_errors(self):
        with pytest.raises(AttributeError):
            ExLlamaV2Sampler.Settings().temprature = 1.0

    def test_almost_cold_is_greedy_and_0_and_1_switch_top_p_off(self, dynamic):
        cold = ExLlamaV2Sampler.Settings(temperature=0.005, token_repetition_penalty=1.0)
        assert dynamic.generate("one", 8, gen_settings=cold) == dynamic.generate("one", 8, gen_settings=GREEDY)
        off = [ExLlamaV2Sampler.Settings(top_p=top_p) for top_p in (0, 1, 1.5)]
        assert len({dynamic.generate("one", 8, seed=1, gen_settings=settings) for settings in off}) == 1

    def test_a_clone_is_another_object(self):
        settings = ExLlamaV2Sampler.Settings(top_k=3)
        other = settings.clone()
        other.top_k = 4
        assert settings.top_k == 3
        cold = ExLlamaV2Sampler.Settings(token_repetition_penalty=1.2, min_p=0.1).greedy_clone()
        assert (cold.token_repetition_penalty, SamplingParams(**cold.params()).is_greedy) == (1.2, True)


class TestOlderGenerators:
    def test_generate_simple(self, parts, dynamic):
        base = ExLlamaV2BaseGenerator(**parts)
        base.warmup()
        whole = base.generate_simple("one", GREEDY, 8, stop_token=None)
        assert whole == dynamic.generate("one", 8, gen_settings=GREEDY)
        stopped = base.generate_simple("one", GREEDY, 8, completion_only=True)
        assert dynamic.generate("one", 8, gen_settings=GREEDY, completion_only=True, stop_conditions=[258]) == stopped

    def test_streaming(self, parts, dynamic):
        streaming = ExLlamaV2StreamingGenerator(**parts)
        expected = dynamic.generate("one", 30, gen_settings=GREEDY, completion_only=True)
        streaming.set_stop_conditions([])
        streaming.begin_stream_ex(parts["tokenizer"].encode("one"), GREEDY)
        text, tokens = "", []
        while len(tokens) < 30:
            result = streaming.stream_ex()
            text += result["chunk"]
            tokens += result["chunk_token_ids"][0].tolist()
        assert expected.startswith(text) or text.startswith(expected)
        streaming.set_stop_conditions(list(range(260)))
        streaming.begin_stream(parts["tokenizer"].encode("one"), GREEDY)
        chunk, eos, ids = streaming.stream()
        assert (chunk, eos, ids.shape) == ("", True, (1, 0))
        assert parts["cache"].pool.book.num_held == 0

    def test_streaming_tells_what_is_asked_for(self, parts):
        streaming = ExLlamaV2StreamingGenerator(**parts)
        streaming.set_stop_conditions([])
        asked = {"return_probabilities": True, "return_top_tokens": 2, "return_logits": True}
        streaming.begin_stream_ex(parts["tokenizer"].encode("one"), GREEDY, **asked)
        result = streaming.stream_ex()
        count = result["chunk_token_ids"].shape[1]
        assert torch.equal(result["probs"], torch.ones(1, count))
        assert torch.equal(result["top_tokens"][..., 0], result["chunk_token_ids"])
        assert result["top_probs"].shape == (1, count, 2)
        assert torch.equal(result["logits"].argmax(-1), result["chunk_token_ids"])

    def test_streaming_tells_of_what_was_taken_back(self, parts, dynamic):
        text = dynamic.generate("one", 30, gen_settings=GREEDY, completion_only=True)
        streaming = ExLlamaV2StreamingGenerator(**parts)
        streaming.set_stop_conditions([])
        streaming.begin_stream_ex(parts["tokenizer"].encode("one"), GREEDY, banned_strings=[text[4:7]])
        assert text[4:7] in "".join(streaming.stream_ex().get("suppressed", "") for _ in range(10))

    def test_tokens_may_be_banned_for_a_piece(self, parts):
        streaming = ExLlamaV2StreamingGenerator(**parts)
        streaming.set_stop_conditions([])
        ids = parts["tokenizer"].encode("one")
        streaming.begin_stream_ex(ids, GREEDY)
        free = [streaming.stream_ex()["chunk_token_ids"][0].tolist() for _ in range(4)]
        streaming.begin_stream_ex(ids, GREEDY)
        assert streaming.stream_ex()["chunk_token_ids"][0].tolist() == free[0]
        assert not set(streaming.stream_ex(ban_tokens=free[1])["chunk_token_ids"][0].tolist()) & set(free[1])
        again = streaming.sequence_ids
        after = streaming.stream_ex()["chunk_token_ids"][0].tolist()
        streaming.begin_stream_ex(again, GREEDY)
        assert streaming.stream_ex()["chunk_token_ids"][0].tolist() == after  # as if nothing had been banned
        with pytest.raises(RequestError, match=r"ban_tokens is .*, expected ids from 0 to 259"):
            streaming.stream_ex(ban_tokens=[260])

    def test_an_abort_ends_the_stream(self, parts):
        streaming, event = ExLlamaV2StreamingGenerator(**parts), threading.Event()
        streaming.begin_stream_ex(parts["tokenizer"].encode("one"), HOT, abort_event=event)
        streaming.stream_ex()
        event.set()
        assert streaming.stream_ex()["eos"]
        assert parts["cache"].pool.book.num_held == 0

    def test_nothing_is_carried_on(self, parts):
        assert not ExLlamaV2BaseGenerator(**parts).full()

    @pytest.mark.parametrize("by", ["a model", "n-grams"])
    def test_drafts_are_counted(self, parts, by):
        def text_of(streaming):
            streaming.set_stop_conditions([])
            streaming.begin_stream_ex(parts["tokenizer"].encode("one one one"), GREEDY)
            tokens = []
            while len(tokens) < 30:
                tokens += streaming.stream_ex()["chunk_token_ids"][0].tolist()
            return tokens[:30]

        cache = ExLlamaV2Cache(parts["model"])
        given = {"draft_model": parts["model"], "draft_cache": cache} if by == "a model" else {}
        streaming = ExLlamaV2StreamingGenerator(**parts, **given, num_speculative_tokens=3)
        streaming.speculative_ngram = by == "n-grams"
        expected = text_of(ExLlamaV2StreamingGenerator(**parts))
        assert text_of(streaming) == expected
        efficiency, accuracy, total, drafted, accepted = streaming.get_sd_stats()
        assert 0 < accepted <= drafted
        assert total >= 30
        assert (efficiency, accuracy) == (accepted / total, accepted / drafted)
        text_of(streaming)
        assert streaming.get_sd_stats()[2:] == (2 * total, 2 * drafted, 2 * accepted)
        streaming.reset_sd_stats()
        assert streaming.get_sd_stats() == (0.0, 0.0, 0, 0, 0)

    def test_there_are_no_drafts(self, parts):
        streaming = ExLlamaV2StreamingGenerator(**parts)
        streaming.set_stop_conditions([])
        streaming.begin_stream_ex(parts["tokenizer"].encode("one"), GREEDY)
        count = sum(streaming.stream_ex()["chunk_token_ids"].shape[1] for _ in range(3))
        assert streaming.get_sd_stats() == (0.0, 0.0, count, 0, 0)
        streaming.reset_sd_stats()
        assert streaming.get_sd_stats() == (0.0, 0.0, 0, 0, 0)
        with pytest.raises(RequestError, match="into the prompt"):
            streaming.ngram_preload(parts["tokenizer"].encode("one"))

    def test_no_stream_yet(self, parts):
        with pytest.raises(RequestError, match="begin_stream_ex"):
            ExLlamaV2StreamingGenerator(**parts).stream_ex()


def test_every_exported_name_is_there():
    for module in (exllamav2, exllamav2.generator):
        assert all(inspect.isclass(getattr(module, name)) for name in module.__all__)
        assert module.__all__ == sorted(module.__all__)


def test_a_broken_tokenizer_is_one_line(tmp_path):
    write(write_random_model(tmp_path), "tokenizer.json", {})
    with pytest.raises(PolybitError, match=r"tokenizer\.json"):
        ExLlamaV2Tokenizer(ExLlamaV2Config(str(tmp_path)))


class TestAsync:
    def ask(self, parts, ask):
        async def run():
            generator = ExLlamaV2DynamicGeneratorAsync(**parts)
            try:
                return await ask(generator)
            finally:
                await generator.close()

        found = asyncio.run(run())
        assert parts["cache"].pool.book.num_held == 0
        return found

    def job(self, parts, generator, text, **options):
        wanted = {"max_new_tokens": 10, "gen_settings": HOT, "seed": 1, **options}
        return ExLlamaV2DynamicJobAsync(generator, parts["tokenizer"].encode(text), **wanted)

    def test_jobs_run_together_and_say_what_the_others_would(self, parts, dynamic):
        async def read(job):
            return [result async for result in job]

        async def ask(generator):
            return await asyncio.gather(*(read(self.job(parts, generator, text)) for text in ("one", "two")))

        for text, results in zip(("one", "two"), self.ask(parts, ask), strict=True):
            expected = dynamic.generate(text, 10, gen_settings=HOT, seed=1, completion_only=True)
            assert "".join(result.get("text", "") for result in results) == expected
            assert [result["stage"] for result in results[:2]] == ["started", "prefill"]
            assert [result["eos"] for result in results] == [False] * (len(results) - 1) + [True]

    def test_a_cancelled_job_ends_and_the_others_go_on(self, parts):
        async def ask(generator):
            kept, dropped = self.job(parts, generator, "one"), self.job(parts, generator, "two", max_new_tokens=400)
            async for result in dropped:
                if result["stage"] == "streaming":
                    await dropped.cancel()
            return [result async for result in kept][-1]

        assert self.ask(parts, ask)["new_tokens"] == 10

    def test_the_error_of_a_job_is_raised_there(self, parts, monkeypatch):
        def fail(*inputs):
            raise RuntimeError("no device")

        async def ask(generator):
            with monkeypatch.context() as patched:
                patched.setattr(type(parts["model"].inner), "forward", fail)
                with pytest.raises(PolybitError, match="no device"):
                    async for _ in self.job(parts, generator, "one"):
                        pass
            return [result async for result in self.job(parts, generator, "one")][-1]

        assert self.ask(parts, ask)["new_tokens"] == 10

    def test_a_job_that_cannot_fit_is_refused_at_once(self, parts):
        async def ask(generator):
            with pytest.raises(RequestError, match="the cache holds 512"):
                self.job(parts, generator, "one", max_new_tokens=600)

        self.ask(parts, ask)
