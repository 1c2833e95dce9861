"""Conversations as values: what the model is shown after each change, and the way through a list of messages."""

import pytest

from polybit.chat.conversation import Conversation, Turn, from_messages
from polybit.errors import RequestError

TALK = Conversation("Be.", (Turn("one", "1"), Turn("two", "2")))


def test_messages_are_in_the_order_of_what_was_said() -> None:
    assert TALK.asked("three").messages == [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "three"},
    ]


def test_each_change_makes_the_turns_that_it_says() -> None:
    assert TALK.without_last().turns == TALK.turns[:1]
    assert TALK.without_oldest().turns == TALK.turns[1:]
    assert TALK.answered(None).turns[-1] == Turn("two", None)
    assert TALK.answered("deux").turns[-1] == Turn("two", "deux")
    assert TALK.reworded("zwei").turns[-1] == Turn("zwei", None)
    assert TALK.turns[-1] == Turn("two", "2")


def test_a_question_without_an_answer_gives_way_to_the_next() -> None:
    assert TALK.asked("three").asked("four").turns[2:] == (Turn("four"),)


def test_an_empty_answer_is_no_missing_answer() -> None:
    assert not TALK.answered("").awaits_answer


@pytest.mark.parametrize("talk", [TALK, TALK.asked("three"), Conversation(), Conversation("Be."), TALK.answered("")])
def test_messages_and_back(talk: Conversation) -> None:
    assert from_messages(talk.messages) == talk


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "assistant", "content": "x"}], "by turns"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "x"}], "by turns"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "by turns"),
        ([{"content": "x"}], "by turns"),
        ([{"role": "user", "content": [1]}], "message 0 is no text"),
    ],
)
def test_messages_out_of_order_are_refused(messages: list[dict[str, object]], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        from_messages(messages)


@pytest.mark.parametrize("change", ["last_turn", "first_turn"])
def test_where_nothing_was_said_there_is_no_turn(change: str) -> None:
    with pytest.raises(RequestError, match="nothing was said yet"):
        getattr(Conversation(), change)


def test_where_nothing_was_said_nothing_is_answered() -> None:
    with pytest.raises(RequestError, match="nothing was said yet"):
        Conversation().answered("x")
