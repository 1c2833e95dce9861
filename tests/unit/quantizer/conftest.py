"""A tiny model folder that can be converted: random weights, and a tokenizer of one token a byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from random_model import write_random_model

VOCABULARY = 256

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_model(seed=0, **config entries) -> folder"""

    def make(seed: int = 0, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        write_random_model(folder, {"vocab_size": VOCABULARY, **config}, seed)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(make_model: Make) -> Path:
    """Two layers of Llama."""
    return make_model()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration text enough for the tests' conversions."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"{n} plus {n + 1} is {2 * n + 1}." for n in range(400)), encoding="utf-8")
    return path
