"""`polybit chat`: a conversation, by the model's own chat template, at a terminal or over a pipe."""

from functools import partial
from typing import Annotated

import typer

from polybit import env
from polybit.chat.commands import resumed
from polybit.chat.saved import Chats
from polybit.chat.session import Session
from polybit.cli.console import note
from polybit.cli.loading import load_engine
from polybit.cli.shared_options import CacheTokens, ModelName, drafting, loading, sampling
from polybit.cli.talk import has_room, is_terminal, talk_at_terminal, talk_over_pipe
from polybit.generator.drafting import DraftOptions
from polybit.generator.params import SamplingParams
from polybit.model.options import LoadOptions


@loading
@drafting
@sampling
def chat(
    model: ModelName,
    options: LoadOptions,
    draft_options: DraftOptions,
    params: SamplingParams,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", "-r", metavar="NAME", help="Go on with a conversation that was saved.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the oldest turns unasked when the context is full.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown/--no-markdown", help="Show answers formatted, on a terminal.")
    ] = True,
    cache_tokens: CacheTokens = None,
) -> None:
    """Talk to a model. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.

    Over a pipe each line is a message or a command, answers come out as plain text, and the first mistake ends it.
    """
    chats = Chats(env.data_dir() / "chats")
    saved = None if resume is None else chats.read(resume)
    engine = load_engine(model, options, cache_tokens, draft_options)
    engine.chat_template  # noqa: B018 - raises before the first question where the model has none
    session = Session(model, params, chats, partial(has_room, engine), system, forget)
    if resume is not None and saved is not None:
        session.resume(resume, saved, system)
        note(resumed(session))
    if is_terminal():
        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        talk_at_terminal(engine, session, markdown)
    else:
        talk_over_pipe(engine, session)
