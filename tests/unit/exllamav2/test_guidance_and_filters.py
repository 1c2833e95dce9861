"""exllamav2's CFG, filters and hooks."""

import math
import re

import pytest
import torch

from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import (
    ExLlamaV2DynamicGenerator,
    ExLlamaV2DynamicJob,
    ExLlamaV2PostSamplingHook,
    ExLlamaV2Sampler,
    ExLlamaV2StreamingGenerator,
)
from exllamav2.generator.filters import ExLlamaV2Filter, ExLlamaV2PrefixFilter, ExLlamaV2SelectFilter
from polybit.errors import RequestError
from random_model import write_random_model
from unit.text.folders import byte_level

GREEDY = ExLlamaV2Sampler.Settings.greedy()
GUIDED = ExLlamaV2Sampler.Settings.greedy(cfg_scale=2.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = byte_level(write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": 272}))
    config = ExLlamaV2Config(str(folder))
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache(model, lazy=True)
    model.load_autosplit(cache)
    return {"model": model, "cache": cache, "tokenizer": ExLlamaV2Tokenizer(config)}


@pytest.fixture
def dynamic(parts):
    return ExLlamaV2DynamicGenerator(**parts)


def last_of(dynamic, job):
    dynamic.enqueue(job)
    results = []
    while dynamic.num_remaining_jobs():
        results += dynamic.iterate()
    return results[-1]


class TestGuidance:
    @pytest.fixture
    def expected(self, parts, dynamic):
        """What polybit says."""
        ids, negative = (parts["tokenizer"].encode(text)[0].tolist() for text in ("a good one", "bad"))
        wanted = {"temperature": 0, "max_tokens": 10, "ignore_eos": True, "cfg_scale": 2.0}
        return dynamic._engine.generate(ids, negative_prompt=negative, **wanted).text

    def test_a_pair_of_prompts(self, dynamic, expected):
        wanted = {"gen_settings": GUIDED, "max_new_tokens": 10}
        assert dynamic.generate(("a good one", "bad"), **wanted) == "a good one" + expected
        pairs = [("a good one", "bad"), ("a good one", "a good one")]
        both = dynamic.generate(pairs, completion_only=True, **wanted)
        assert both == [expected, dynamic.generate("a good one", 10, gen_settings=GREEDY, completion_only=True)]

    def test_a_job_with_a_list_or_a_padded_batch(self, dynamic, parts, expected):
        tokenizer = parts["tokenizer"]
        batch = tokenizer.encode(["a good one", "bad"])
        for ids in ([tokenizer.encode("a good one"), tokenizer.encode("bad")], batch):
            job = ExLlamaV2DynamicJob(ids, 10, gen_settings=GUIDED)
            last = last_of(dynamic, job)
            assert (last["full_completion"], last["prompt_tokens"]) == (expected, 10)
            assert [sequence.input_ids.shape[1] for sequence in job.sequences] == [10, 3]
        assert parts["cache"].pool.book.num_held == 0

    def test_a_stream_with_the_tokenizers_mask_and_offsets(self, parts, expected):
        tokenizer, streaming = parts["tokenizer"], ExLlamaV2StreamingGenerator(**parts)
        ids, offsets = tokenizer.encode(["a good one", "bad"], return_offsets=True)
        mask = tokenizer.padding_mask(ids)
        streaming.set_stop_conditions([])
        streaming.begin_stream_ex(ids, GUIDED, input_mask=mask, position_offsets=offsets)
        text = "".join(streaming.stream_ex()["chunk"] for _ in range(5))
        assert len(text) > 4
        assert expected.startswith(text)
        with pytest.raises(RequestError, match="more than padding on the left"):
            streaming.begin_stream_ex(ids, GUIDED, input_mask=mask.flip(-1), position_offsets=offsets)

    def test_a_pair_and_its_scale_belong_together(self, dynamic):
        with pytest.raises(RequestError, match=r"needs ExLlamaV2Sampler\.Settings\.cfg_scale"):
            dynamic.generate(("one", "two"), 8)
        with pytest.raises(RequestError, match=r"cfg_scale is 2\.0, expected a pair of prompts"):
            dynamic.generate("one", 8, gen_settings=GUIDED)
        with pytest.raises(RequestError, match="expected a text, a tuple of two"):
            dynamic.generate(("one", "two", "three"), 8, gen_settings=GUIDED)

    def test_both_have_to_fit(self, dynamic):
        with pytest.raises(RequestError, match="take 3 pages of 256 tokens, but the cache has 2"):
            dynamic.generate(("a" * 200, "b" * 250), 50, gen_settings=GUIDED)


class Letters(ExLlamaV2Filter):
    """Small letters, and three of them; as scripts write such classes."""

    def __init__(self, model, tokenizer, letters="abc"):
        super().__init__(model, tokenizer)
        pieces = tokenizer.get_id_to_piece_list()
        self.allowed = {token for token, piece in enumerate(pieces) if piece and piece in letters}
        self.begun = None
        self.tokens = []

    def begin(self, prefix_str):
        self.begun, self.tokens = prefix_str, []

    def feed(self, token):
        self.tokens.append(int(token[0][0]))

    def next(self):
        return self.allowed, self.allowed if len(self.tokens) == 2 else set()


class Masked(Letters):
    """The same by masks."""

    added = 0.0

    def can_mask_logits(self):
        return True

    def prepare_logit_mask(self):
        self.is_prepared = True
        return True

    def mask_logits(self, logits):
        masked = torch.full_like(logits, -math.inf)
        masked[:, list(self.allowed)] = logits[:, list(self.allowed)] + self.added
        return masked


class TestFilters:
    def text(self, dynamic, *filters, settings=None, **options):
        wanted = {"max_new_tokens": 8, "seed": 1, "completion_only": True, "gen_settings": settings, **options}
        return dynamic.generate("one", filters=list(filters), **wanted)

    def test_a_class_of_the_scripts_own(self, dynamic, parts):
        letters = Letters(parts["model"], parts["tokenizer"])
        for _ in range(2):  # begun anew
            text = self.text(dynamic, letters)
            assert len(text) == 3
            assert set(text) <= set("abc")
        assert letters.begun == ""
        assert parts["tokenizer"].decode(letters.tokens) == text

    def test_the_end_is_explained(self, dynamic, parts):
        letters = Letters(parts["model"], parts["tokenizer"])
        last = last_of(dynamic, ExLlamaV2DynamicJob(parts["tokenizer"].encode("one"), 8, filters=[letters]))
        assert (last["eos"], last["eos_reason"], last["new_tokens"]) == (True, "end_filter", 3)

    def test_masks(self, dynamic, parts):
        masked = Masked(parts["model"], parts["tokenizer"])
        text = self.text(dynamic, masked)
        assert (len(text), set(text) <= set("abc"), masked.is_prepared) == (8, True, True)
        masked.added = 1.0
        with pytest.raises(RequestError, match=r"Masked\.mask_logits changes logits to other than -inf"):
            self.text(dynamic, masked)

    def test_all_must_allow_a_token(self, dynamic, parts):
        filters = [Letters(parts["model"], parts["tokenizer"], letters) for letters in ("abc", "bcd", "ce")]
        assert self.text(dynamic, *filters) == "ccc"
        prefix = ExLlamaV2PrefixFilter(parts["model"], parts["tokenizer"], "ab")
        assert re.fullmatch("ab[abc]", self.text(dynamic, filters[0], prefix))  # which allows any in the end
        with pytest.raises(RequestError, match="no token is left"):
            self.text(dynamic, filters[0], Letters(parts["model"], parts["tokenizer"], "xyz"))

    def test_each_prompt_of_a_list_has_its_own(self, dynamic, parts):
        filters = [[Letters(parts["model"], parts["tokenizer"], letters)] for letters in ("a", "b")]
        wanted = {"max_new_tokens": 8, "completion_only": True}
        assert dynamic.generate(["one", "two"], filters=filters, **wanted) == ["aaa", "bbb"]
        with pytest.raises(RequestError, match="expected a list of 2, one for each prompt"):
            dynamic.generate(["one", "two"], filters=filters[0], **wanted)
        with pytest.raises(RequestError, match="classes under ExLlamaV2Filter"):
            dynamic.generate(["one"], filters=filters[0], **wanted)

    def test_a_prefix(self, dynamic, parts):
        prefix = ExLlamaV2PrefixFilter(parts["model"], parts["tokenizer"], ["Well, ", "Oh, "])
        texts = {self.text(dynamic, prefix, max_new_tokens=12, seed=seed) for seed in range(8)}
        assert {text.split(", ")[0] for text in texts} == {"Well", "Oh"}
        assert len(texts) == 8

    def test_a_selection(self, dynamic, parts):
        select = ExLlamaV2SelectFilter(parts["model"], parts["tokenizer"], ["yes", "no", "yes, but"])
        hot = ExLlamaV2Sampler.Settings(temperature=3.0)
        texts = {self.text(dynamic, select, settings=hot, seed=seed) for seed in range(30)}
        assert texts == {"yes", "no", "yes, but"}

    def test_a_selection_in_any_case(self, dynamic, parts):
        select = ExLlamaV2SelectFilter(parts["model"], parts["tokenizer"], ["Yes", "no"], case_insensitive=True)
        texts = {self.text(dynamic, select, seed=seed) for seed in range(20)}
        assert {text.lower() for text in texts} == {"yes", "no"}
        assert len(texts) > 2

    def test_the_end_is_preferred_where_it_may_come(self, dynamic, parts):
        select = ExLlamaV2SelectFilter(parts["model"], parts["tokenizer"], ["a", "aaaaaa"])
        assert {self.text(dynamic, select, seed=s, filter_prefer_eos=True) for s in range(9)} == {"a"}

    def test_a_clone_goes_its_own_way(self, parts):
        select = ExLlamaV2SelectFilter(parts["model"], parts["tokenizer"], ["ab"])
        other = select.clone()
        assert type(other) is ExLlamaV2SelectFilter
        other.begin("a")
        assert [len(one.next()[0]) for one in (select, other)] == [1, 1]
        assert select.next()[0] != other.next()[0]

    def test_streams_have_them_too(self, parts):
        streaming = ExLlamaV2StreamingGenerator(**parts)
        select = ExLlamaV2SelectFilter(parts["model"], parts["tokenizer"], ["yes"])
        streaming.begin_stream_ex(parts["tokenizer"].encode("one"), GREEDY, filters=[select])
        results = [streaming.stream_ex() for _ in range(3)]
        assert ("".join(result["chunk"] for result in results), results[-1]["eos"]) == ("yes", True)

    @pytest.mark.parametrize("options", [{"banned_strings": ["x"]}, {"token_healing": True}])
    def test_what_does_not_go_together_is_refused(self, dynamic, parts, options):
        with pytest.raises(RequestError, match="leave one of them out"):
            self.text(dynamic, Letters(parts["model"], parts["tokenizer"]), **options)

    def test_what_a_filter_raises_ends_its_job_alone(self, dynamic, parts):
        class Broken(Letters):
            def feed(self, token):
                raise ValueError("lost")

        filters = [[Broken(parts["model"], parts["tokenizer"])], []]
        with pytest.raises(RequestError, match="own filter failed: ValueError: lost"):
            dynamic.generate(["one", "two"], 8, filters=filters)
        assert parts["cache"].pool.book.num_held == 0

    def test_options_are_texts(self, parts):
        with pytest.raises(RequestError, match=r"ExLlamaV2SelectFilter: .*expected texts"):
            ExLlamaV2SelectFilter(parts["model"], parts["tokenizer"], [])


class TestHooks:
    def test_a_hook_sees_each_token_and_may_replace_it(self, dynamic, parts):
        seen = []

        class Every(ExLlamaV2PostSamplingHook):
            def __call__(self, results):
                seen.append(results)
                results.sampled_token = results.candidate_tokens[:, :, 1]

        settings = ExLlamaV2Sampler.Settings(post_sampling_hooks=[Every()])
        expected = []
        text = dynamic.generate("one", 4, gen_settings=settings, completion_only=True, seed=1)
        for result in seen:
            assert result.sampled_prob.shape == (1, 1)
            assert result.logits.shape == (1, 1, 260)
            assert result.candidate_probs[0, 0].diff().max() <= 0
            expected.append(result.candidate_tokens[0, 0, 1].item())
        assert (len(seen), text) == (4, parts["tokenizer"].decode(expected))

    def test_it_may_keep_a_token_from_the_filters(self, dynamic, parts):
        def skip(results):
            results.feed_filters = False

        letters = Letters(parts["model"], parts["tokenizer"])
        settings = ExLlamaV2Sampler.Settings(post_sampling_hooks=[skip])
        assert len(dynamic.generate("one", 6, filters=[letters], gen_settings=settings, completion_only=True)) == 6
        assert letters.tokens == []

    def test_what_it_leaves_must_be_a_token(self, dynamic):
        def spoil(results):
            results.sampled_token = "x"

        with pytest.raises(RequestError, match="hook left sampled_token='x', expected one token id"):
            dynamic.generate("one", 4, gen_settings=ExLlamaV2Sampler.Settings(post_sampling_hooks=[spoil]))
