"""What a line of the user's means: a message, or one of the `/` commands, each an entry of one table."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polybit.chat import settings
from polybit.chat.lines import SEVERAL_LINES
from polybit.chat.session import Session
from polybit.errors import RequestError, did_you_mean

COMMAND = re.compile(r"/(\w+|\?)(?:\s+(.*))?", re.DOTALL)  # so that /usr/bin is none
NO_SYSTEM = "none"


@dataclass(frozen=True)
class Tell:
    """Show this; nothing else happens."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The last question is to be answered. `remark`: what to show before."""

    remark: str = ""


@dataclass(frozen=True)
class Draft:
    """The user goes on from this line."""

    line: str


@dataclass(frozen=True)
class Leave:
    """The conversation is over."""


Outcome = Tell | Answer | Draft | Leave
Action = Callable[[Session, str], Outcome]  # with what stands behind the command


@dataclass(frozen=True)
class Command:
    names: tuple[str, ...]  # the first is the one that is told
    argument: str
    help: str
    action: Action


def take(session: Session, text: str) -> Outcome:
    """Carry out a command, or take in a message. Raises PolybitError, and leaves the session as it was, if it cannot.

    A question that does not fit stays, without an answer.
    """
    found = COMMAND.fullmatch(text)
    if found is None:
        session.ask(text)
        return _to_be_answered(session)
    return _command(found[1]).action(session, (found[2] or "").strip())


def _command(name: str) -> Command:
    named = {name: command for command in COMMANDS for name in command.names}
    if name not in named:
        listed = did_you_mean(name, list(named))
        raise RequestError(f"there is no command /{name}; {listed} (a space in front makes it a message)")
    return named[name]


def _to_be_answered(session: Session) -> Outcome:
    """The last question is, if there is room. What the first one may take is for the engine to judge."""
    if len(session.conversation.turns) == 1 or session.fits(session.conversation.messages):
        return Answer()
    if session.forgets:
        return _after_forgetting(session)
    raise RequestError("the conversation fills the context; /forget drops its oldest turns and answers, /clear all")


def _after_forgetting(session: Session) -> Outcome:
    gone = session.make_room()
    oldest = "the oldest turn" if gone == 1 else f"the {gone} oldest turns"
    return Answer(f"the context is full: forgot {oldest}" if gone else "")


# ---- the commands


def show_help(session: Session, argument: str) -> Outcome:
    return Tell("\n".join(help_lines()))


def help_lines() -> Iterator[str]:
    calls = [f"/{command.names[0]} {command.argument}".strip() for command in COMMANDS]
    width = max(map(len, calls))
    for call, command in zip(calls, COMMANDS, strict=True):
        others = ", ".join(f"/{name}" for name in command.names[1:])
        yield f"{call:{width}}  {command.help}{f' (also {others})' if others else ''}"
    yield f"{SEVERAL_LINES:{width}}  begins a message of several lines, which ends with a line that ends so"


def system(session: Session, argument: str) -> Outcome:
    if not argument:
        now = session.conversation.system
        return Tell("there is no system prompt" if now is None else f"system prompt: {now}")
    session.instruct(None if argument == NO_SYSTEM else argument)
    session.keep()
    return Tell("the next answer goes by it")


def retry(session: Session, argument: str) -> Outcome:
    session.conversation = session.conversation.answered(None)
    return _to_be_answered(session)


def edit(session: Session, argument: str) -> Outcome:
    last = session.conversation.last_turn
    if not argument:
        return Draft(f"/edit {last.question}")
    session.reword(argument)
    return _to_be_answered(session)


def undo(session: Session, argument: str) -> Outcome:
    gone = session.conversation.last_turn
    session.conversation = session.conversation.without_last()
    session.keep()
    return Tell(f"taken back: {gone.question}")


def clear(session: Session, argument: str) -> Outcome:
    session.clear()
    return Tell("forgotten")


def forget(session: Session, argument: str) -> Outcome:
    """For an open question as much as it needs, else one turn."""
    if session.conversation.awaits_answer:
        return _after_forgetting(session)
    oldest = session.conversation.first_turn
    session.conversation = session.conversation.without_oldest()
    session.keep()
    return Tell(f"forgotten: {oldest.question}")


def history(session: Session, argument: str) -> Outcome:
    said = [f"{message['role']}: {message['content']}" for message in session.conversation.messages]
    return Tell("\n\n".join(said) or "nothing was said yet")


def save(session: Session, argument: str) -> Outcome:
    name = argument or session.name
    if name is None:
        raise RequestError("it has no name yet; give one, as in /save trip")
    session.save(name)
    return Tell(f"saved as {session.chats.path(name)}; what follows will be too")


def load(session: Session, argument: str) -> Outcome:
    if not argument:
        return Tell("\n".join(session.chats.names()) or f"nothing is saved in {session.chats.folder}")
    session.resume(argument, session.chats.read(argument))
    return Tell(resumed(session))


def resumed(session: Session) -> str:
    """Where a conversation goes on."""
    turns = session.conversation.turns
    last = f"; the last question: {turns[-1].question}" if turns else ""
    return f"{session.name}, turns so far: {len(turns)}{last}"


def set_parameter(session: Session, argument: str) -> Outcome:
    name, _, text = argument.partition(" ")
    if not name:
        return Tell(settings.listed(session.params))
    if text:
        session.params = settings.with_setting(session.params, name, text.strip())
        session.keep()
    return Tell(settings.explained(session.params, name))


def leave(session: Session, argument: str) -> Outcome:
    return Leave()


COMMANDS = (
    Command(("help", "?"), "", "this list", show_help),
    Command(("retry", "regen"), "", "answer the last question anew", retry),
    Command(("edit",), "[TEXT]", "ask the last question in other words", edit),
    Command(("undo",), "", "take back the last question and its answer", undo),
    Command(("clear",), "", "forget all that was said, and begin anew", clear),
    Command(("forget",), "", "forget the oldest turns: as many as an open question needs, else one", forget),
    Command(("history",), "", "show what was said", history),
    Command(("system",), "[TEXT]", f"show or set the system prompt; {NO_SYSTEM}: no such prompt", system),
    Command(("set", "params"), "[NAME [VALUE]]", "show or set parameters, as in /set temperature 0.7", set_parameter),
    Command(("save",), "[NAME]", "keep the conversation, from now on after every answer", save),
    Command(("load",), "[NAME]", "go on with a saved one; without a name: list them", load),
    Command(("quit", "exit", "bye"), "", "leave; as Ctrl-D", leave),
)
