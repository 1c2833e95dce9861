"""Models that guess for another: loaded with it, counted in its plan of memory, refused where they cannot."""

from pathlib import Path

import pytest
import torch

from polybit.errors import ConfigError, OutOfMemory
from polybit.generator import Engine, load
from polybit.generator.drafting import DraftOptions, open_draft, plan_draft
from polybit.generator.load import plan_for
from polybit.generator.speculative import ModelDrafter, NgramDrafter
from polybit.model.machine import this_machine
from polybit.model.options import LoadOptions
from polybit.model.plan import GIB, Budget, Machine
from polybit.model.source import open_model
from polybit.text import Tokenizer
from random_model import TINY_LLAMA, write_random_model
from unit.text.folders import byte_level

CONFIG = {"vocab_size": 272, "max_position_embeddings": 1024}
GPT2 = dict.fromkeys(TINY_LLAMA) | {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 64,
    "vocab_size": 272,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(write_random_model(tmp_path_factory.mktemp("model"), CONFIG))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A draft of half the depth, padded to fewer rows, that was made for short texts."""
    config = {"vocab_size": 264, "max_position_embeddings": 128, "num_hidden_layers": 1}
    return byte_level(write_random_model(tmp_path / "small", config, seed=1))


def say(engine: Engine) -> tuple[int, ...]:
    return engine.generate("one one one", temperature=0.9, seed=4, max_tokens=200, ignore_eos=True).tokens


class TestLoading:
    def test_changes_no_text(self, folder: Path, small: Path) -> None:
        expected = say(load(folder, device="cpu"))
        for options in ({"draft": folder}, {"draft": str(small)}, {"ngram_draft": True}):
            assert say(load(folder, device="cpu", num_draft_tokens=3, **options)) == expected

    def test_takes_options_and_pool_of_its_target(self, folder: Path, small: Path) -> None:
        engine = load(folder, device="cpu", draft=small, num_draft_tokens=7, cache="q8", cache_tokens=600)
        drafter = engine.drafter
        assert isinstance(drafter, ModelDrafter)
        pool = drafter._forward.pool
        assert (drafter.num_tokens, pool.num_tokens) == (7, engine.pool.num_tokens)
        assert engine.context == 768  # beyond the 128 that the draft is made for
        assert pool.num_bytes * 2 == engine.pool.num_bytes
        assert isinstance(load(folder, device="cpu", ngram_draft=True).drafter, NgramDrafter)
        assert load(folder, device="cpu").drafter is None

    def test_learned_positions_reach_no_further(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        learned = byte_level(write_random_model(tmp_path, GPT2))
        assert open_draft(learned, open_model(folder), Tokenizer.open(folder)).spec.max_seq_len == 64
        assert "64 learned positions" in caplog.text


class TestMemory:
    def test_a_draft_is_planned_with_its_cache_and_leaves_the_rest(self, folder: Path, small: Path) -> None:
        source = open_model(folder)
        draft = open_draft(small, source, Tokenizer.open(folder))
        cpu = Machine((Budget(torch.device("cpu"), GIB),), GIB)
        planned = plan_draft(draft, 1024, cpu)
        assert planned.left.budgets[0].free == GIB - planned.num_bytes
        per_token = 2 * 2 * 16 * 4  # keys and values of 2 heads of 16 numbers in fp32, in one layer
        assert plan_draft(draft, 2048, cpu).num_bytes - planned.num_bytes == 1024 * per_token

    def test_where_it_is_short_the_pool_shrinks_or_the_draft_is_named(
        self, folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def free(num_bytes: int) -> None:
            monkeypatch.setattr("polybit.model.machine.free_ram", lambda: num_bytes)

        options = {"device": "cpu", "backend": "reference", "unpacked": False}
        free(GIB)
        source = open_model(folder, LoadOptions(**options))
        planned = plan_draft(open_draft(small, source, Tokenizer.open(folder)), 1024, this_machine(source.options))
        alone = plan_for(source, 1024).plan.shares[0].total
        free(alone)
        assert load(folder, **options).pool.num_tokens == 1024
        with pytest.raises(OutOfMemory, match=rf"what helps: .*; or no draft: {small} takes [\d.]+ MiB more"):
            load(folder, draft=small, **options)
        free(alone + planned.num_bytes)
        assert load(folder, draft=small, **options).pool.num_tokens == 1024


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_draft_tokens": 0}, "num_draft_tokens is 0, expected a whole number from 1 to 32"),
            ({"num_draft_tokens": 33}, "num_draft_tokens is 33, expected a whole number from 1 to 32"),
            ({"num_draft_tokens": 2.5}, "num_draft_tokens is 2.5, expected a whole number"),
            ({"ngram_draft": 1}, "ngram_draft is 1, expected True or False"),
            ({"ngram_draft": True, "draft": "small"}, "ngram_draft is True beside the draft model small"),
        ],
    )
    def test_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            DraftOptions(**options)  # type: ignore[arg-type]

    def test_another_vocabulary(self, folder: Path, tmp_path: Path) -> None:
        other = byte_level(write_random_model(tmp_path, CONFIG), specials=("<s>", "</s>", "<mask>"))
        with pytest.raises(
            ConfigError, match=rf"{other} cannot be the draft of {folder}: its token 259 is '<mask>', expected '<pad>'"
        ):
            load(folder, device="cpu", draft=other)
        shorter = byte_level(other, specials=("<s>", "</s>"))
        with pytest.raises(ConfigError, match="its token 259 is missing, expected '<pad>'"):
            load(folder, device="cpu", draft=shorter)

    def test_too_few_embeddings(self, folder: Path, tmp_path: Path) -> None:
        few = byte_level(write_random_model(tmp_path, {**CONFIG, "vocab_size": 200}))
        with pytest.raises(ConfigError, match="embeddings of 200 tokens, expected all 260"):
            load(folder, device="cpu", draft=few)

    def test_no_such_folder(self, folder: Path) -> None:
        with pytest.raises(ConfigError):
            load(folder, device="cpu", draft="no/such/folder/here")
