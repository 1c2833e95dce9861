"""`polybit generate`: continue a text, or answer one message."""

import sys
from typing import Annotated

import typer

from polybit.cli.console import note, print_json, results
from polybit.cli.loading import load_engine
from polybit.cli.shared_options import CacheTokens, ModelName, drafting, loading, sampling
from polybit.errors import RequestError
from polybit.generator.completion import Completion
from polybit.generator.drafting import DraftOptions
from polybit.generator.engine import Engine
from polybit.generator.params import SamplingParams
from polybit.generator.stream import Stream
from polybit.model.options import LoadOptions
from polybit.text import Message


@loading
@drafting
@sampling
def generate(
    model: ModelName,
    options: LoadOptions,
    draft_options: DraftOptions,
    params: SamplingParams,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Text to go on from; `-` reads it from stdin.", show_default=False)
    ],
    chat: Annotated[bool, typer.Option("--chat", help="Treat the prompt as a message, and answer it.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System prompt; implies --chat.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text while it comes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with counts and speeds.")] = False,
    cache_tokens: CacheTokens = None,
) -> None:
    """Continue a text, or answer one message with --chat."""
    text = sys.stdin.read() if prompt == "-" else prompt
    engine = load_engine(model, options, cache_tokens, draft_options)
    answer = start(engine, text, system, params, as_message=chat or system is not None)
    if as_json:
        print_json(describe(answer.drain()))
    elif stream:
        print_stream(answer)
    else:
        results.out(answer.drain().text)


def start(engine: Engine, text: str, system: str | None, params: SamplingParams, as_message: bool) -> Stream:
    """The stream of what follows `text`, or of the answer to it."""
    if not text:
        raise RequestError("the prompt is empty; give some text with -p")
    return engine.stream_chat(conversation(text, system), params) if as_message else engine.stream(text, params)


def conversation(text: str, system: str | None) -> list[Message]:
    user: Message = {"role": "user", "content": text}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def print_stream(answer: Stream) -> Completion:
    """Print the pieces as they come, and the speed when there are no more."""
    print_pieces(answer)
    note(timings(answer.completion))
    return answer.completion


def print_pieces(answer: Stream) -> None:
    """Whatever ends it, what was said is a line of its own."""
    try:
        with answer:
            for piece in answer:
                results.file.write(piece)
                results.file.flush()
    finally:
        results.file.write("\n")
        results.file.flush()


def timings(done: Completion) -> str:
    """How much was written and read, and how fast."""
    written = f"{len(done.tokens)} tokens, {done.decode_rate:.1f} a second"
    guessed = done.accepted_draft_tokens + done.rejected_draft_tokens
    if guessed:
        written += f", {done.accepted_draft_tokens} of {guessed} guesses right"
    return f"{written}; prompt {done.prompt_tokens} tokens, {done.cached_tokens} cached, {done.prefill_seconds:.2f} s"


def describe(done: Completion) -> dict[str, object]:
    return {
        "text": done.text,
        "tokens": len(done.tokens),
        "finish_reason": done.finish_reason,
        "stopped_by": done.stopped_by,
        "prompt_tokens": done.prompt_tokens,
        "prompt_tokens_per_second": done.prefill_rate,
        "tokens_per_second": done.decode_rate,
        "accepted_draft_tokens": done.accepted_draft_tokens,
        "rejected_draft_tokens": done.rejected_draft_tokens,
    }
