"""What was said so far, as a value: a system prompt, and questions with their answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from polybit.errors import RequestError
from polybit.text import Message


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str | None = None  # None: there is none yet


@dataclass(frozen=True)
class Conversation:
    """Every turn but the last has its answer."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def awaits_answer(self) -> bool:
        return bool(self.turns) and self.turns[-1].answer is None

    @property
    def messages(self) -> list[Message]:
        """As chat templates take them."""
        said: list[Message] = [] if self.system is None else [_message("system", self.system)]
        for turn in self.turns:
            said.append(_message("user", turn.question))
            if turn.answer is not None:
                said.append(_message("assistant", turn.answer))
        return said

    @property
    def first_turn(self) -> Turn:
        """Raises RequestError where nothing was said."""
        return self._turn(0)

    @property
    def last_turn(self) -> Turn:
        """Raises RequestError where nothing was said."""
        return self._turn(-1)

    def _turn(self, i: int) -> Turn:
        if not self.turns:
            raise RequestError("nothing was said yet; ask something first")
        return self.turns[i]

    # ---- changed copies

    def asked(self, question: str) -> "Conversation":
        """With another question, in place of one that has no answer."""
        kept = self.turns[:-1] if self.awaits_answer else self.turns
        return replace(self, turns=(*kept, Turn(question)))

    def answered(self, answer: str | None) -> "Conversation":
        """With `answer` to the last question; None takes away the one that it has."""
        return replace(self, turns=(*self.turns[:-1], Turn(self.last_turn.question, answer)))

    def reworded(self, question: str) -> "Conversation":
        """With the last question in other words, and no answer to it."""
        return replace(self, turns=(*self.turns[:-1], Turn(question)))

    def without_last(self) -> "Conversation":
        return replace(self, turns=self.turns[:-1])

    def without_oldest(self) -> "Conversation":
        return replace(self, turns=self.turns[1:])


def from_messages(messages: Sequence[Message]) -> Conversation:
    """The inverse of `messages`. Raises RequestError unless user and assistant take turns, after a system prompt."""
    roles = [message.get("role") for message in messages]
    opening = int(roles[:1] == ["system"])
    if roles[opening:] != [("user", "assistant")[i % 2] for i in range(len(roles) - opening)]:
        raise RequestError(
            f"its messages are from {roles!r:.80}, expected user and assistant by turns, after at most one system"
        )
    texts = [message.get("content") for message in messages]
    said = [text for text in texts if isinstance(text, str)]
    if len(said) != len(texts):
        raise RequestError(f"the content of message {_first_without_text(texts)} is no text")
    questions, answers = said[opening::2], said[opening + 1 :: 2]
    unanswered: list[str | None] = [None] * (len(questions) - len(answers))
    turns = tuple(map(Turn, questions, [*answers, *unanswered]))
    return Conversation(said[0] if opening else None, turns)


def _first_without_text(texts: Sequence[object]) -> int:
    return next(i for i, text in enumerate(texts) if not isinstance(text, str))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
