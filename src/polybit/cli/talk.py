"""The loop of a conversation: read, carry out, answer; at a terminal or over a pipe."""

import sys
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.text import Text
from typing_extensions import assert_never

from polybit.chat.commands import Answer, Draft, Leave, Tell, take
from polybit.chat.lines import read_message
from polybit.chat.session import Session
from polybit.cli.console import fail, note, notes
from polybit.cli.generate import print_pieces, timings
from polybit.cli.line_input import read_line
from polybit.cli.markdown_view import MarkdownView
from polybit.errors import PolybitError, RequestError
from polybit.generator.completion import Completion
from polybit.generator.engine import Engine
from polybit.generator.stream import Stream
from polybit.text import Message

ROOM_FOR_ANSWER = 256  # tokens; of a short context, a quarter
PROMPT, PROMPT_FOR_MORE = "\n> ", ". "

Show = Callable[[Stream], None]


def is_terminal() -> bool:
    """Whether someone types and reads; else stdin holds the messages, and stdout gets nothing but answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def has_room(engine: Engine, messages: list[Message]) -> bool:
    prompt = engine.chat_template.render(messages)
    room = min(ROOM_FOR_ANSWER, engine.context // 4)
    return len(engine.tokenizer.encode(prompt)) + room <= engine.context


# ---- two ways to talk


def talk_over_pipe(engine: Engine, session: Session) -> None:
    """Until the end of input, /quit, or the first error, which is raised."""
    draft: str | None = ""
    while draft is not None:
        if draft:
            raise RequestError("over a pipe /edit needs the new words behind it")
        try:
            text = read_message(lambda _: read_line(""))
        except EOFError:
            return
        draft = carry_out(engine, session, text, print_pieces)


def talk_at_terminal(engine: Engine, session: Session, markdown: bool) -> None:
    """Until Ctrl-D or /quit. Errors are told, and the conversation goes on."""
    show = print_markdown if markdown else print_pieces
    draft: str | None = ""
    while draft is not None and (text := next_at_terminal(draft)) is not None:
        try:
            draft = carry_out(engine, session, text, show)
        except (KeyboardInterrupt, PolybitError) as error:
            note("stopped") if isinstance(error, KeyboardInterrupt) else fail(str(error))
            draft = ""


def next_at_terminal(draft: str) -> str | None:
    """What was typed; None at Ctrl-D. Ctrl-C gives the line up."""
    try:
        return read_message(partial(read_at_prompt, draft))
    except EOFError:
        note("")
        return None
    except KeyboardInterrupt:
        note("\nCtrl-D or /quit leaves")
        return ""


def read_at_prompt(draft: str, continuing: bool) -> str:
    return read_line(PROMPT_FOR_MORE) if continuing else read_line(PROMPT, draft)


# ---- one message or command


def carry_out(engine: Engine, session: Session, text: str, show: Show) -> str | None:
    """Returns what the next line begins with, mostly nothing; None: the conversation is over."""
    if not text:
        return ""
    match take(session, text):
        case Tell(said):
            notes.print(Text(said))
        case Answer(remark):
            if remark:
                note(remark)
            answer(engine, session, show)
        case Draft(line):
            return line
        case Leave():
            return None
        case impossible:
            assert_never(impossible)
    return ""


def answer(engine: Engine, session: Session, show: Show) -> None:
    """Show the answer to the last question; one that Ctrl-C stopped counts as far as it came."""
    stream = engine.stream_chat(session.conversation.messages, session.params)
    try:
        show(stream)
    except KeyboardInterrupt:
        session.answered(stream.completion.text)
        raise
    session.answered(stream.completion.text)
    note(timings(stream.completion))
    if (remark := why_cut(stream.completion, engine.context)) is not None:
        note(remark)


def why_cut(done: Completion, context: int) -> str | None:
    """What ended an answer before its end."""
    if done.finish_reason != "length":
        return None
    if done.prompt_tokens + len(done.tokens) >= context:
        return f"cut: the context of {context} tokens is full; /forget drops the oldest turn"
    return f"cut after {len(done.tokens)} tokens; /set max_tokens NUMBER allows more"


def print_markdown(stream: Stream) -> None:
    """As it comes, formatted; as plain text where the terminal can do no better."""
    console = Console(highlight=False)
    if console.is_dumb_terminal:
        print_pieces(stream)
        return
    with stream, MarkdownView(console) as show:
        for piece in stream:
            show(piece)
