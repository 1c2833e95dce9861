"""A real quantized model on a GPU against the CPU's reference: logits, and greedy tokens after twenty prompts.

POLYBIT_TEST_MODEL names its folder, as `polybit demo` or `polybit convert` writes it. Needs an accelerator: pytest -m
gpu.
"""

import os

import pytest

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

import torch
from torch import Tensor

import polybit
from closeness import relative_error, tolerance
from greedy import near_ties
from packed_model import matrices_of
from polybit.cache import KVPool
from polybit.generator import Engine
from polybit.kernels.cuda.streamed import Streamed
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows

FOLDER = os.environ.get("POLYBIT_TEST_MODEL")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(FOLDER is None, reason="POLYBIT_TEST_MODEL names no folder of an EXL2 model"),
]

CACHE_TOKENS = 1024
NEW_TOKENS = 48
MOST_TIES = 0.03  # of all tokens
HALF_AGAIN = 1.5  # times the error that plain fp16 arithmetic makes
LONG = 3  # prompts at once, so that products have more rows than kernels for few take
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of motion are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at",
    "1, 1, 2, 3, 5, 8,",
    "She opened the letter and read:",
    "In 1969, for the first time,",
    "To bake bread you need",
    "The difference between a virus and a bacterium is",
    "SELECT name FROM customers WHERE",
    "My favourite season is autumn, because",
    "The theory of evolution says that",
    "Question: How many legs has a spider?\nAnswer:",
    "Le chat est sur la",
    "A good night's sleep",
    "He looked at the sky. It was",
    "Photosynthesis is the process by which",
    "Chapter 1\n\nIt was a dark",
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return polybit.load(str(FOLDER), device="cuda", dtype="float16", cache_tokens=CACHE_TOKENS)


@pytest.fixture(scope="module")
def cpu() -> Model:
    return on_cpu("float32")


def on_cpu(dtype: str) -> Model:
    return load(open_model(str(FOLDER), LoadOptions(device="cpu", dtype=dtype, unpacked=True)))


@pytest.fixture(scope="module")
def said(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """Each prompt, and what the GPU says after it."""
    return [(prompt, say(engine, prompt)) for prompt in map(engine.prompt_ids, PROMPTS)]


def say(engine: Engine, prompt: list[int]) -> list[int]:
    return list(engine.generate(prompt, temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True).tokens)


def logits(model: Model, rows: list[list[int]]) -> Tensor:
    """Rows of one length -> [tokens of all, V] on the CPU"""
    tokens = torch.tensor(rows).flatten().to(model.device)
    return model.forward(tokens, *whole_rows(len(rows), len(rows[0]), model.device)).cpu()


def test_every_matrix_is_streamed(engine: Engine) -> None:
    assert {type(matrix) for matrix in matrices_of(engine.model)} == {Streamed}


def test_logits_are_the_cpus(engine: Engine, cpu: Model, said: list[tuple[list[int], list[int]]]) -> None:
    """Of short passes, whose products read the packed weights, and of a long one, which dequantizes them.

    As close to fp32 as fp16 allows: a text can have a token whose logits hang on the last bits of its activations.
    """
    in_half = on_cpu("float16")
    texts = [prompt + answer for prompt, answer in said]
    length = min(map(len, texts))
    for rows in (*([text[:length]] for text in texts), [text[:length] for text in texts[:LONG]]):
        expected = logits(cpu, rows)
        unavoidable = relative_error(logits(in_half, rows), expected)
        allowed = max(tolerance("model", torch.float16), HALF_AGAIN * unavoidable)
        assert relative_error(logits(engine.model, rows), expected) <= allowed


def test_greedy_tokens_are_the_cpus(engine: Engine, cpu: Model, said: list[tuple[list[int], list[int]]]) -> None:
    ties = 0
    for prompt, answer in said:
        seen = logits(cpu, [prompt + answer])[len(prompt) - 1 : -1, : engine.tokenizer.vocab_size]
        ties += near_ties(answer, seen, torch.float16)
    assert ties <= MOST_TIES * NEW_TOKENS * len(PROMPTS)


def test_the_same_answer_every_time(engine: Engine, said: list[tuple[list[int], list[int]]]) -> None:
    """Over a cache that is empty again: with part of a prompt in it, another number of rows would be multiplied."""
    model = engine.model
    pool = KVPool(model.spec, CACHE_TOKENS, model.dtype, model.device, model.backend)
    again = Engine(model, engine.tokenizer, pool, engine.folder)
    assert [say(again, prompt) for prompt, _ in said] == [answer for _, answer in said]
