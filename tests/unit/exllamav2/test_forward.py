"""Passes that scripts make themselves, with a cache and without; and names that have nothing behind them yet."""

import threading

import pytest
import torch

import exllamav2
from closeness import assert_close
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2Sampler
from polybit.errors import OutOfMemory, RequestError
from random_model import write_random_model
from unit.text.folders import byte_level


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return byte_level(write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": 272}))


@pytest.fixture(scope="module")
def model(folder):
    model = ExLlamaV2(ExLlamaV2Config(str(folder)))
    model.load()
    return model


@pytest.fixture
def cache(model):
    cache = ExLlamaV2Cache(model, batch_size=2, max_seq_len=512)
    yield cache
    cache.reset()
    assert cache.pool.book.num_held == 0


IDS = torch.arange(2 * 40).view(2, 40)


class TestForward:
    def test_without_a_cache(self, model):
        logits = model.forward(IDS)
        assert logits.shape == (2, 40, 272)
        assert_close(model.forward(IDS[1:]), logits[1:], "logits")
        assert_close(model.forward(IDS, last_id_only=True), logits[:, -1:], "logits")

    def test_a_cache_goes_on_where_it_was(self, model, cache, monkeypatch):
        expected = model.forward(IDS)
        monkeypatch.setattr("exllamav2.passes.CHUNK_TOKENS", 20)
        assert model.forward(IDS[:, :25], cache, preprocess_only=True) is None
        assert cache.current_seq_len == 25
        assert_close(model.forward(IDS[:, 25:39], cache), expected[:, 25:39], "logits")
        assert_close(model.forward(IDS[:, 39:], cache, cpu_logits=True), expected[:, 39:], "logits")
        assert cache.current_seq_len == 40

    def test_it_can_be_set_back(self, model, cache):
        model.forward(IDS, cache)
        cache.current_seq_len = 10
        assert_close(model.forward(IDS[:, 10:], cache), model.forward(IDS)[:, 10:], "logits")
        cache.current_seq_len = 0
        assert_close(model.forward(IDS[:1], cache), model.forward(IDS[:1]), "logits")  # another batch size
        with pytest.raises(RequestError, match="expected 0 to the 40 that are stored"):
            cache.current_seq_len = 41

    def test_a_loop_of_the_scripts_own_says_what_the_generator_says(self, model, cache):
        tokenizer = ExLlamaV2Tokenizer(model.config)
        ids, settings = tokenizer.encode("some prompt"), ExLlamaV2Sampler.Settings.greedy()
        prompt = ids
        model.forward(ids[:, :-1], cache, preprocess_only=True)
        for _ in range(8):
            logits = model.forward(ids[:, -1:], cache)
            token, *_ = ExLlamaV2Sampler.sample(logits, settings, ids, 0.5, tokenizer)
            ids = torch.cat([ids, token], 1)
        generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
        text = generator.generate("some prompt", 8, gen_settings=settings, completion_only=True)
        assert tokenizer.decode(ids[0, prompt.shape[1] :]) == text

    def test_an_event_cuts_it_off(self, model, cache):
        event = threading.Event()
        assert model.forward(IDS, abort_event=event) is not None
        event.set()
        assert model.forward(IDS, abort_event=event) is None
        assert model.forward(IDS, cache, abort_event=event) is None
        assert cache.current_seq_len == 0

    def test_what_is_only_to_be_stored_gets_no_logits(self, model, cache, monkeypatch):
        rows, head = [], type(model.inner).logits
        monkeypatch.setattr(type(model.inner), "logits", lambda self, x: (rows.append(len(x)), head(self, x))[1])
        assert model.forward(IDS, preprocess_only=True) is None
        assert model.forward(IDS, cache, preprocess_only=True) is None
        model.forward(IDS, cache, last_id_only=True)
        assert rows == [0, 0, 2]

    def test_the_batch_is_the_caches(self, model, cache):
        with pytest.raises(RequestError, match=r"has 3 rows, but the cache is made for 2; make it with batch_size=3"):
            model.forward(IDS[:1].repeat(3, 1), cache)
        model.forward(IDS, cache)
        with pytest.raises(RequestError, match=r"has 1 rows, but the cache holds tokens of 2; .* cache\.reset\(\)"):
            model.forward(IDS[:1], cache)
        assert cache.current_seq_len == 40
        cache.reset()
        assert model.forward(IDS[:1], cache).shape == (1, 40, 272)

    def test_a_cache_that_is_full_stays_as_it_was(self, model, cache):
        expected = model.forward(IDS, cache)
        with pytest.raises(OutOfMemory, match=r"the K/V pool has"):
            model.forward(torch.zeros(2, 900, dtype=torch.int64), cache)
        assert cache.current_seq_len == 40
        cache.current_seq_len = 20
        assert_close(model.forward(IDS[:, 20:], cache), expected[:, 20:], "logits")

    @pytest.mark.parametrize("argument", [{"loras": [1]}, {"return_last_state": True}, {"input_mask": IDS}])
    def test_what_it_cannot_do_is_named(self, model, argument):
        with pytest.raises(RequestError, match=next(iter(argument))):
            model.forward(IDS, **argument)
        with pytest.raises(RequestError, match="input_ids must be"):
            model.forward(IDS[0])


class TestNames:
    @pytest.mark.parametrize("name", ["ExLlamaV2Lora", "ExLlamaV2VisionTower", "ExLlamaV2MMEmbedding"])
    def test_classes_can_be_imported_and_say_that_they_are_not_there(self, name, model):
        with pytest.raises(RequestError, match=f"{name}: .* not supported by polybit yet"):
            getattr(exllamav2, name)(model)

    def test_adapters_say_so_by_their_usual_way_in(self, model):
        with pytest.raises(RequestError, match="merge it into the model"):
            exllamav2.ExLlamaV2Lora.from_directory(model, "adapter")

    @pytest.mark.parametrize("name", ["clone", "copy_states", "roll_left", "all_tensors", "get_kv_state"])
    def test_so_do_methods_of_caches(self, name, cache):
        with pytest.raises(RequestError, match=rf"ExLlamaV2Cache\.{name} is not supported"):
            getattr(cache, name)()

    @pytest.mark.parametrize("name", ["load_gen", "load_autosplit_gen", "forward_chunk", "get_modules", "load_tp"])
    def test_and_of_models(self, name, model):
        with pytest.raises(RequestError, match=f"{name}.* not supported"):
            getattr(model, name)()
        with pytest.raises(RequestError, match="get_modules is not supported"):
            _ = model.modules


class TestConfig:
    def test_what_the_folder_says_can_be_read(self, folder):
        config = ExLlamaV2Config(str(folder))
        assert (config.intermediate_size, config.num_experts, config.sliding_window) == (96, None, None)
        assert config.model_config["hidden_size"] == config.hidden_size
        assert config.generation_config == {}

    def test_but_not_changed(self, folder):
        config = ExLlamaV2Config(str(folder))
        config.num_experts_per_token = 3
        with pytest.raises(RequestError, match="num_experts_per_token is 3, but the folder's is None"):
            ExLlamaV2(config).load()
