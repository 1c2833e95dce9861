"""`polybit chat`: a conversation, by the model's own chat template. Works over a pipe, one message a line."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from polybit.cli.console import note
from polybit.cli.generate import print_stream
from polybit.cli.loading import load_engine
from polybit.cli.shared_options import CacheTokens, ModelName, loading, sampling
from polybit.errors import RequestError
from polybit.generator.engine import Engine
from polybit.generator.params import SamplingParams
from polybit.model.options import LoadOptions
from polybit.text import Message

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - gives input() line editing; not on Windows

ROOM_FOR_ANSWER = 256  # tokens; of a short context, a quarter


@loading
@sampling
def chat(
    model: ModelName,
    options: LoadOptions,
    params: SamplingParams,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    cache_tokens: CacheTokens = None,
) -> None:
    """Talk to a model. /clear forgets the conversation, /exit or the end of input leaves, Ctrl-C stops an answer."""
    engine = load_engine(model, options, cache_tokens)
    engine.chat_template  # noqa: B018 - raises before the first question where the model has none
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    note("/clear forgets, /exit leaves, Ctrl-C stops an answer")
    messages = list(opening)
    for line in read_messages():
        if line == "/clear":
            messages = list(opening)
            continue
        asked = forget_oldest(engine, [*messages, {"role": "user", "content": line}], len(opening))
        try:
            messages = [*asked, {"role": "assistant", "content": answer(engine, asked, params)}]
        except RequestError as error:
            note(f"{error} (the conversation goes on without this message)")


def read_messages() -> Iterator[str]:
    """Lines that say something, until /exit or the end of input."""
    prompt = "\n> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line:
            yield line


def answer(engine: Engine, messages: list[Message], params: SamplingParams) -> str:
    """Stream the answer to the terminal; one that Ctrl-C stopped counts as far as it came."""
    stream = engine.stream_chat(messages, params)
    try:
        print_stream(stream)
    except KeyboardInterrupt:
        note("\nstopped")
    return stream.completion.text


def forget_oldest(engine: Engine, messages: list[Message], num_opening: int) -> list[Message]:
    """Drop the oldest question and its answer until the conversation leaves room for the next answer."""
    while len(messages) > num_opening + 1 and not has_room(engine, messages):
        note("the conversation is longer than the context: forgetting its oldest turn")
        messages = messages[:num_opening] + messages[num_opening + 2 :]
    return messages


def has_room(engine: Engine, messages: list[Message]) -> bool:
    prompt = engine.chat_template.render(messages)
    room = min(ROOM_FOR_ANSWER, engine.context // 4)
    return len(engine.tokenizer.encode(prompt)) + room <= engine.context
