"""A conversation going on: what was said, with which parameters, under which name it is kept."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from polybit.chat.conversation import Conversation
from polybit.chat.saved import Chats, Saved
from polybit.chat.settings import differences
from polybit.errors import RequestError
from polybit.generator.params import SamplingParams, with_fields
from polybit.text import Message

Fits = Callable[[list[Message]], bool]  # whether a prompt leaves room for an answer


class Session:
    """Changes that fail leave it as it was. Under a name it is saved after every answer."""

    def __init__(
        self,
        model: str,
        params: SamplingParams,
        chats: Chats,
        fits: Fits,
        system: str | None = None,
        forgets: bool = False,
    ) -> None:
        """`params`, `system`: what was asked for from outside. `forgets`: old turns go unasked when it gets long."""
        self.model = model
        self.params = params
        self.chats = chats
        self.fits = fits
        self.forgets = forgets
        self.name: str | None = None
        self._given = params
        self.conversation = Conversation()
        self.instruct(system)

    # ---- what is said

    def ask(self, question: str) -> None:
        self.conversation = self.conversation.asked(checked_text(question))

    def reword(self, question: str) -> None:
        """Ask the last question in other words."""
        self.conversation = self.conversation.reworded(checked_text(question))

    def instruct(self, system: str | None) -> None:
        """Set the system prompt, or take it away."""
        text = None if system is None else checked_text(system)
        self.conversation = replace(self.conversation, system=text)

    def answered(self, answer: str) -> None:
        """Nothing said is no answer: the question stays open."""
        self.conversation = self.conversation.answered(answer or None)
        self.keep()

    def make_room(self) -> int:
        """Forget the oldest turns until there is room for an answer; returns how many.

        Raises RequestError, and forgets nothing, where the last question alone takes the room.
        """
        shorter, before = self.conversation, len(self.conversation.turns)
        while not self.fits(shorter.messages):
            shorter = shorter.without_oldest()
            if not shorter.turns:
                raise RequestError(
                    "the last question alone fills the context; /edit shortens it, nothing was forgotten"
                )
        self.conversation = shorter
        return before - len(shorter.turns)

    def clear(self) -> None:
        """Begin anew, under no name, so that what was saved stays as it is."""
        self.name = None
        self.conversation = Conversation(self.conversation.system)

    # ---- on disk

    def save(self, name: str) -> None:
        self.chats.check_free(name)
        self._write(name)
        self.name = name

    def keep(self) -> None:
        """Save it where it has a name."""
        if self.name is not None:
            self._write(self.name)

    def resume(self, name: str, saved: Saved, system: str | None = None) -> None:
        """Go on with `saved`; what was asked for from outside, and a `system` prompt, stand above what it holds."""
        self.params = merged(saved.params, self._given)
        self.conversation = saved.conversation
        if system is not None:
            self.instruct(system)
        self.name = name

    def _write(self, name: str) -> None:
        self.chats.write(name, Saved(self.conversation, differences(self.params), self.model))


def merged(saved: Mapping[str, Any], given: SamplingParams) -> SamplingParams:
    """`saved` parameters, but `given` ones where they are not as by default."""
    return with_fields(None, {**saved, **differences(given)})


def checked_text(text: str) -> str:
    """Raises RequestError for bytes that were no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"character {error.start} is no text; expected UTF-8") from None
    return text
