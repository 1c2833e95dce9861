"""A few words of a converted model, so that whoever made it sees at once whether it speaks."""

import logging
from dataclasses import replace

import torch

from polybit.errors import ConfigError, OutOfMemory, PolybitError
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.source import ModelSource
from polybit.modules.step import Step
from polybit.quantizer.own_text import PassageStore
from polybit.quantizer.tested import Sample
from polybit.text.chat_template import ChatTemplate
from polybit.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

QUESTION = "What is the capital of France? Answer in one sentence."
BEGINNING = "The capital of France is"
MOST_TOKENS = 24


def greedy_sample(source: ModelSource, device: torch.device) -> Sample | None:
    """An answer to a question where the model has a chat template, else a continued sentence; None: it does not fit."""
    try:
        model = load(replace(source, options=replace(source.options, device=str(device))))
    except OutOfMemory as error:
        log.warning("the self-test goes without a sample: %s", error)
        return None
    try:
        return _sample(model, Tokenizer.open(source.folder), source)
    except PolybitError as error:  # of the template or the tokenizer, which are the source's own
        log.warning("the self-test goes without a sample: %s", error)
        return None


def _sample(model: Model, tokenizer: Tokenizer, source: ModelSource) -> Sample:
    try:
        template = ChatTemplate.open(source.folder, tokenizer.special_tokens.names)
    except ConfigError:
        is_chat, asked, text = False, BEGINNING, BEGINNING
    else:
        is_chat, asked, text = True, QUESTION, template.render([{"role": "user", "content": QUESTION}])
    prompt = tokenizer.encode(text, add_bos=tokenizer.adds_bos or model.spec.needs_bos)
    return Sample(asked, tokenizer.decode(_continue(model, prompt, tokenizer.eos_ids)), is_chat)


def _continue(model: Model, prompt: list[int], eos: tuple[int, ...]) -> list[int]:
    """The likeliest tokens after `prompt`, up to one that ends a text."""
    capacity = min(model.max_seq_len, len(prompt) + MOST_TOKENS)
    store, written, given = PassageStore(capacity), list[int](), prompt[-capacity:]
    start = 0
    while start + len(given) < capacity:
        last = torch.tensor([len(given) - 1], device=model.device)
        tokens = torch.tensor(given, device=model.device)
        likeliest = int(model.forward(tokens, _step(start, len(given), model.device), store, last).argmax())
        if likeliest in eos:
            break
        start, given = start + len(given), [likeliest]
        written.append(likeliest)
    return written


def _step(start: int, count: int, device: torch.device) -> Step:
    """Tokens [start, start + count) of a single sequence in a single page."""
    places = torch.arange(start, start + count, device=device)
    return Step(
        positions=places,
        slots=places,
        page_table=torch.zeros(1, 1, dtype=torch.int32, device=device),
        query_starts=torch.tensor([0, count], dtype=torch.int32, device=device),
        lengths=torch.tensor([start + count], dtype=torch.int32, device=device),
        max_queries=count,
        max_length=start + count,
    )
