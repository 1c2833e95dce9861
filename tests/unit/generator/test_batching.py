"""Many requests of one engine at once, over a random model's real logits: what each says does not depend on others."""

import asyncio
import gc
import math
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from polybit.cache import PAGE_TOKENS, KVPool
from polybit.errors import KernelError, PolybitError, RequestError
from polybit.generator import Engine, SamplingParams, load
from polybit.generator.background import THREAD
from polybit.generator.sampling import Sampled
from polybit.generator.scheduler import Limits
from polybit.generator.sequence import Sequence
from random_model import write_random_model
from unit.text.folders import byte_level

GREEDY = SamplingParams(temperature=0, min_p=0, max_tokens=12, ignore_eos=True)
HOT = replace(GREEDY, temperature=2.0)
PROMPTS = ["one", "two two", "a longer one " * 30, "x", "a longer one " * 30 + "with another end", "y" * 300]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("model"), {"vocab_size": 272, "max_position_embeddings": 1024})
    return load(byte_level(folder), device="cpu", dtype="float32", backend="reference", cache_tokens=PAGE_TOKENS)


@pytest.fixture
def make(loaded):
    """A fresh engine over the model: its pool holds nothing."""

    def make(pages=16, sequences=64, prompt_tokens=2048, tokens_beside=512):
        model = loaded.model
        pool = KVPool(model.spec, pages * PAGE_TOKENS, model.dtype, model.device, model.backend)
        for layer in range(len(model.spec.blocks)):
            for part in pool.pages(layer):
                part.fill_(math.nan)  # what nobody wrote must not matter
        limits = Limits(sequences, prompt_tokens, tokens_beside)
        return Engine(model, loaded.tokenizer, pool, loaded.folder, limits=limits)

    return make


@pytest.fixture
def engine(make):
    return make()


@pytest.fixture(scope="module")
def alone(loaded):
    """What prompt and parameters give in an engine of their own."""
    known = {}

    def alone(prompt, params):
        if (prompt, params) not in known:
            model = loaded.model
            pool = KVPool(model.spec, 4 * PAGE_TOKENS, model.dtype, model.device, model.backend)
            engine = Engine(model, loaded.tokenizer, pool, loaded.folder)
            known[prompt, params] = engine.generate(prompt, params).tokens
        return known[prompt, params]

    return alone


class TestEachSaysWhatItWouldSayAlone:
    @pytest.mark.parametrize("params", [GREEDY, replace(HOT, seed=3)], ids=["greedy", "seeded"])
    def test_in_a_list(self, engine, alone, params):
        found = engine.generate(PROMPTS, [params] * len(PROMPTS))
        assert [one.tokens for one in found] == [alone(prompt, params) for prompt in PROMPTS]
        assert engine.pool.book.num_held == 0

    def test_with_parameters_of_its_own(self, engine, alone):
        params = [GREEDY, replace(HOT, seed=1), replace(HOT, seed=2, top_k=5), replace(GREEDY, repetition_penalty=1.3)]
        found = engine.generate(PROMPTS[:4], params)
        assert [one.tokens for one in found] == list(map(alone, PROMPTS[:4], params))

    def test_a_second_time_from_pages_of_the_first(self, engine, alone):
        engine.generate(PROMPTS, GREEDY)
        found = engine.generate(PROMPTS, GREEDY)
        assert [one.tokens for one in found] == [alone(prompt, GREEDY) for prompt in PROMPTS]
        assert [one.cached_tokens for one in found] == [
            one.prompt_tokens - 1 if one.prompt_tokens > 16 else 0 for one in found
        ]

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])  # makes afresh each time
    @given(data=st.data())
    def test_whenever_it_comes_and_whoever_leaves(self, make, alone, data):
        """In pools so small that requests are sent away, and in steps of few tokens."""
        engine = make(
            pages=data.draw(st.integers(4, 9)),
            sequences=data.draw(st.integers(1, 6)),
            prompt_tokens=data.draw(st.sampled_from([50, 300, 2048])),
            tokens_beside=data.draw(st.sampled_from([30, 512])),
        )
        params = st.sampled_from([GREEDY, replace(HOT, seed=7), replace(GREEDY, max_tokens=30)])
        asked = data.draw(st.lists(st.tuples(st.sampled_from(PROMPTS), params), min_size=1, max_size=8))
        streams = []
        for prompt, wanted in asked:
            streams.append(engine.stream(prompt, wanted))
            for _ in range(data.draw(st.integers(0, 4))):
                engine.step()
        leaver = streams.pop(data.draw(st.integers(0, len(streams) - 1))) if data.draw(st.booleans()) else None
        if leaver is not None:
            leaver.close()
        for stream in streams:
            prompt, wanted = next(pair for pair in asked if engine.prompt_ids(pair[0]) == ids_of(stream))
            assert stream.drain().tokens[:12] == alone(prompt, wanted_of(stream))[:12]
        assert engine.pool.book.num_held == 0


def ids_of(stream):
    return stream._sequence.tokens[: stream._sequence.num_prompt]


def wanted_of(stream):
    return stream._sequence.params


class TestSteps:
    def test_decode_together(self, engine, monkeypatch):
        sizes = count_rows(engine, monkeypatch)
        engine.generate(["a", "b", "c"], GREEDY)
        assert sizes == [3] * 12

    def test_a_long_prompt_stalls_the_others_by_a_chunk_at_most(self, make, monkeypatch):
        engine = make(tokens_beside=100)
        sizes = count_rows(engine, monkeypatch)
        first = engine.stream("a", GREEDY, max_tokens=20)
        engine.step()
        second = engine.stream("y" * 350, GREEDY)
        first.drain()
        assert sizes[1:5] == [1 + 100, 1 + 100, 1 + 56, 1 + 94]  # up to a page's end, then to the prompt's
        assert second.drain().tokens

    def test_nothing_runs_while_nobody_asks(self, engine, monkeypatch):
        sizes = count_rows(engine, monkeypatch)
        stream = engine.stream("a", GREEDY)
        assert sizes == []
        assert engine.step()
        assert len(sizes) == 1
        next(stream)
        seen = len(sizes)
        assert engine.step()
        assert len(sizes) == seen + 1
        stream.drain()
        assert not engine.step()
        assert len(sizes) == 12


def count_rows(engine, monkeypatch):
    """The tokens of each step from here on."""
    sizes, forward = [], type(engine.model).forward

    def counted(model, tokens, *inputs):
        sizes.append(len(tokens))
        return forward(model, tokens, *inputs)

    monkeypatch.setattr(type(engine.model), "forward", counted)
    return sizes


class TestLists:
    def test_ids_and_texts_may_be_mixed(self, engine):
        ids = engine.prompt_ids("one")
        first, second = engine.generate(["one", ids], GREEDY)
        assert first.tokens == second.tokens

    def test_progress_is_told(self, engine):
        told = []
        engine.generate(["a", "b", "c"], GREEDY, progress=lambda *counts: told.append(counts))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_parameters_must_be_as_many_as_prompts(self, engine):
        with pytest.raises(RequestError, match="params has 1 entries for 2 prompts"):
            engine.generate(["a", "b"], [GREEDY])

    def test_an_interrupted_list_leaves_nothing_behind(self, engine):
        def interrupt(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.generate(["a", "b"], [GREEDY, replace(GREEDY, max_tokens=100)], progress=interrupt)
        assert engine.pool.book.num_held == 0
        assert not engine.step()


@pytest.fixture
def broken(engine, monkeypatch):
    """Logits after token "!" are no numbers."""
    model, bad = type(engine.model), engine.prompt_ids("!")[0]
    forward = model.forward

    def spoiled(self, tokens, step, pool, logits_at):
        logits = forward(self, tokens, step, pool, logits_at).clone()
        logits[tokens[logits_at] == bad] = math.nan
        return logits

    monkeypatch.setattr(model, "forward", spoiled)
    return engine


class TestErrors:
    def test_logits_that_are_no_numbers_end_one_request(self, broken, alone):
        params = [replace(HOT, seed=i) for i in range(3)]
        found = broken.generate(["one", "bad!", "x"], params, return_errors=True)
        assert isinstance(found[1], KernelError)
        assert "NaN" in str(found[1])
        assert [found[0].tokens, found[2].tokens] == [alone("one", params[0]), alone("x", params[2])]
        assert broken.pool.book.num_held == 0

    def test_a_prompt_that_cannot_be_served_stands_in_its_place_where_asked_for(self, engine, alone):
        prompts = ["one", "", None, [9999], "x"]
        told = []
        found = engine.generate(prompts, GREEDY, return_errors=True, progress=lambda *counts: told.append(counts))
        assert [type(one) for one in found[1:4]] == [RequestError] * 3
        assert [found[0].tokens, found[4].tokens] == [alone("one", GREEDY), alone("x", GREEDY)]
        assert told == [(4, 5), (5, 5)]
        awaited = asyncio.run(engine.generate_async(prompts, GREEDY, return_errors=True))
        assert [str(one) for one in awaited[1:4]] == [str(one) for one in found[1:4]]
        with pytest.raises(RequestError, match=r"prompts\[1\]: the prompt is empty"):
            engine.generate(prompts, GREEDY)
        with pytest.raises(RequestError, match=r"prompts\[1\]: the prompt is of type NoneType"):
            engine.generate(["one", None], GREEDY)
        with pytest.raises(RequestError, match=r"^unknown sampling parameter 'topk'"):
            engine.generate(["one", "x"], topk=3)
        assert not engine.step()

    def test_nobody_uses_what_it_stored(self, broken):
        text = "some text that is long enough to be found again"
        first, second = broken.generate([text + "!", text + "?"], GREEDY, return_errors=True)
        assert isinstance(first, PolybitError)
        assert second.cached_tokens == 0
        assert broken.generate(text + "?", GREEDY).cached_tokens == second.prompt_tokens - 1

    def test_they_are_raised_where_they_are_not_asked_for(self, broken):
        with pytest.raises(KernelError, match="NaN"):
            broken.generate(["one", "bad!"], GREEDY)
        assert broken.pool.book.num_held == 0

    def test_a_step_that_fails_ends_who_took_part_and_nobody_else(self, make, monkeypatch):
        engine = make(sequences=2)
        streams = [engine.stream(prompt, GREEDY) for prompt in ("a", "b", "c")]
        with monkeypatch.context() as patched:

            def fail(*inputs):
                raise RuntimeError("the device is gone")

            patched.setattr(type(engine.model), "forward", fail)
            engine.step()
        for stream in streams[:2]:
            with pytest.raises(KernelError, match="a step failed: the device is gone"):
                stream.drain()
        assert len(streams[2].drain().tokens) == 12

    def test_one_that_cannot_take_its_token_ends_alone(self, engine, alone, monkeypatch):
        accept = Sequence.accept

        def refuse(sequence, token):
            if sequence.params.seed == 1 and sequence.num_generated == 3:
                raise RequestError("no token fits")
            return accept(sequence, token)

        monkeypatch.setattr(Sequence, "accept", refuse)
        first, second = engine.generate(["one", "x"], HOT, seed=0, return_errors=True)
        assert first.tokens == alone("one", replace(HOT, seed=0))
        assert str(second) == "no token fits"
        assert engine.pool.book.num_held == 0

    @pytest.mark.parametrize("num_before", [1, 4])  # a step that is laid out in its turn, and one that was before
    @pytest.mark.parametrize("when", ["before", "after", "once the next one is laid out"])
    def test_an_interrupted_step_is_made_again(self, engine, alone, monkeypatch, when, num_before):
        prompts = ["one", "y" * 300]
        streams = [engine.stream(prompt, replace(HOT, seed=5)) for prompt in prompts]
        for _ in range(num_before):
            engine.step()
        with monkeypatch.context() as patched:
            forward = type(engine.model).forward

            def interrupt(*inputs):
                if when == "after":
                    forward(*inputs)
                raise KeyboardInterrupt

            interrupted = (type(engine.model), "forward") if when in ("before", "after") else (Sampled, "drawn")
            patched.setattr(*interrupted, interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        assert [stream.drain().tokens for stream in streams] == [alone(p, replace(HOT, seed=5)) for p in prompts]


class TestDiagnosis:
    """A weight that is no number, in one place."""

    @pytest.fixture
    def spoil(self, tmp_path):
        def spoil(name):
            folder = byte_level(write_random_model(tmp_path, {"vocab_size": 272, "num_hidden_layers": 3}))
            tensors = load_file(folder / "model.safetensors")
            tensors[name][7] = math.nan
            save_file(tensors, folder / "model.safetensors")
            return load(folder, device="cpu")

        return spoil

    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("model.layers.1.mlp.down_proj.weight", "layer 1"),
            ("model.layers.0.self_attn.q_proj.weight", "layer 0"),
            ("lm_head.weight", "the head"),
        ],
    )
    def test_the_layer_is_named(self, spoil, name, part):
        with pytest.raises(KernelError, match=rf"NaN .*; the first numbers that are not finite leave {part}$"):
            spoil(name).generate("one", GREEDY)

    def test_a_row_of_the_embedding_hurts_those_who_use_it(self, spoil):
        engine = spoil("model.embed_tokens.weight")
        bad, good = engine.generate([[5, 7, 9], [5, 6, 9]], GREEDY, max_tokens=1, return_errors=True)
        assert str(bad).endswith("leave the embedding")
        assert len(good.tokens) == 1


class TestLeaving:
    def test_a_forgotten_stream_frees_its_pages(self, engine):
        stream = engine.stream("a", GREEDY, max_tokens=500)
        next(stream)
        del stream
        gc.collect()
        assert engine.pool.book.num_held == 0
        assert not engine.step()

    def test_one_that_never_began_leaves_the_queue(self, make):
        engine = make(sequences=1)
        first, second = engine.stream("a", GREEDY), engine.stream("b", GREEDY)
        next(first)
        second.close()
        assert list(second) == []
        assert len(first.drain().tokens) == 12
        assert not engine.step()


class TestThreads:
    def test_each_gets_its_own_text(self, engine, alone):
        found = {}

        def ask(prompt, seed):
            found[prompt, seed] = engine.generate(prompt, HOT, seed=seed).tokens

        threads = [threading.Thread(target=ask, args=(prompt, seed)) for prompt in PROMPTS for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {(p, seed): alone(p, replace(HOT, seed=seed)) for p in PROMPTS for seed in range(2)}
        assert engine.pool.book.num_held == 0

    def test_whoever_waits_gets_what_others_made(self, engine):
        """A reader blocked in a step of someone else comes back with its own text when that step is done."""
        slow, fast = engine.stream("a", GREEDY), engine.stream("b", GREEDY)
        pieces = []
        reader = threading.Thread(target=lambda: pieces.extend(fast))
        reader.start()
        slow.drain()
        reader.join(60)
        assert "".join(pieces) == fast.completion.text

    @pytest.mark.parametrize("is_awaited", [False, True])
    def test_a_last_piece_that_comes_while_one_looks_is_not_lost(self, engine, monkeypatch, is_awaited):
        stream = engine.stream("one", GREEDY, max_tokens=1)
        ready = stream.ready

        def meanwhile_others_make_a_step():
            piece = ready()
            engine.step()
            return piece

        async def listed():
            return [piece async for piece in stream]

        monkeypatch.setattr(stream, "ready", meanwhile_others_make_a_step)
        pieces = asyncio.run(listed()) if is_awaited else list(stream)
        assert stream.completion.text
        assert "".join(pieces) == stream.completion.text


class TestEventLoops:
    def test_pieces_come_to_async_for(self, engine):
        async def read(prompt):
            return [piece async for piece in engine.stream(prompt, GREEDY)]

        async def read_all():
            return await asyncio.gather(*map(read, PROMPTS))

        found = asyncio.run(read_all())
        assert ["".join(pieces) for pieces in found] == [one.text for one in engine.generate(PROMPTS, GREEDY)]

    def test_whole_answers_can_be_awaited(self, engine, alone):
        async def ask():
            one, several = await asyncio.gather(
                engine.generate_async("one", GREEDY), engine.generate_async(PROMPTS, GREEDY)
            )
            return [one, *several]

        found = asyncio.run(ask())
        assert [one.tokens for one in found] == [alone(prompt, GREEDY) for prompt in ["one", *PROMPTS]]

    def test_the_loop_goes_on_meanwhile(self, engine):
        async def count():
            turns = 0
            task = asyncio.create_task(engine.generate_async("a", GREEDY, max_tokens=30))
            while not task.done():
                await asyncio.sleep(0)
                turns += 1
            return turns, len((await task).tokens)

        turns, num_tokens = asyncio.run(count())
        assert turns > 30
        assert num_tokens == 30

    def test_errors_are_raised_there(self, broken):
        async def ask():
            return await asyncio.gather(
                broken.generate_async("bad!", GREEDY), broken.generate_async("x", GREEDY), return_exceptions=True
            )

        failed, served = asyncio.run(ask())
        assert isinstance(failed, KernelError)
        assert len(served.tokens) == 12

    def test_a_client_that_is_gone_frees_its_pages_and_the_thread_ends(self, engine):
        async def leave():
            task = asyncio.create_task(engine.generate_async("a", GREEDY, max_tokens=900))
            while not engine.pool.book.num_held:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join(60)
        assert all(thread.name != THREAD for thread in threading.enumerate())
        assert engine.pool.book.num_held == 0

    def test_threads_and_loops_together(self, engine, alone):
        found = {}
        thread = threading.Thread(target=lambda: found.update(sync=engine.generate("one", GREEDY).tokens))
        thread.start()
        found["async"] = asyncio.run(engine.generate_async("two two", GREEDY)).tokens
        thread.join(60)
        assert found == {"sync": alone("one", GREEDY), "async": alone("two two", GREEDY)}


def test_logits_exist_for_those_who_need_them_only(engine, monkeypatch):
    """Reading a prompt's first chunk asks the head for nothing."""
    rows, forward = [], type(engine.model).forward

    def noted(model, tokens, step, pool, logits_at):
        rows.append(len(logits_at))
        return forward(model, tokens, step, pool, logits_at)

    monkeypatch.setattr(type(engine.model), "forward", noted)
    engine.generate(torch.arange(700).remainder(200).tolist(), GREEDY, max_tokens=2)
    assert rows == [1, 1]
