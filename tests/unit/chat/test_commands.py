"""Every command on a session without a model: what becomes of the conversation, and what is said."""

from pathlib import Path

import pytest

from polybit.chat.commands import COMMANDS, Answer, Draft, Leave, Tell, take
from polybit.chat.conversation import Turn
from polybit.chat.saved import Chats
from polybit.chat.session import Session
from polybit.errors import FormatError, RequestError
from polybit.generator.params import SamplingParams
from polybit.text import Message

ROOM = 40  # characters, in place of a context of tokens


def fits(messages: list[Message]) -> bool:
    return sum(len(message["content"]) for message in messages) <= ROOM


def a_session(folder: Path, **options: object) -> Session:
    return Session("model", SamplingParams(), Chats(folder), fits, **options)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return a_session(tmp_path)


def say(session: Session, question: str, answer: str) -> None:
    assert take(session, question) == Answer()
    session.answered(answer)


def told(session: Session, command: str) -> str:
    outcome = take(session, command)
    assert isinstance(outcome, Tell)
    return outcome.text


def turns(session: Session) -> list[tuple[str, str | None]]:
    return [(turn.question, turn.answer) for turn in session.conversation.turns]


@pytest.mark.parametrize("text", ["hello", "/usr/bin/env", "/", "//clear", " /clear", "a /clear"])
def test_what_is_no_command_is_a_message(session: Session, text: str) -> None:
    assert take(session, text) == Answer()
    assert turns(session) == [(text, None)]


def test_unknown_commands_are_refused_with_the_nearest(session: Session) -> None:
    with pytest.raises(RequestError, match="no command /retri; did you mean retry"):
        take(session, "/retri")


def test_help_lists_every_command_under_all_its_names(session: Session) -> None:
    text = told(session, "/help")
    assert text == told(session, "/?")
    for command in COMMANDS:
        assert all(f"/{name}" in text for name in command.names)
        assert command.help in text


def test_retry_answers_the_last_question_anew(session: Session) -> None:
    say(session, "one", "1")
    say(session, "two", "2")
    assert take(session, "/retry") == Answer()
    assert turns(session) == [("one", "1"), ("two", None)]


def test_edit_asks_the_last_question_in_other_words(session: Session) -> None:
    say(session, "one", "1")
    say(session, "two\nlines", "2")
    assert take(session, "/edit") == Draft("/edit two\nlines")
    assert turns(session)[-1] == ("two\nlines", "2")
    assert take(session, "/edit three\nlines") == Answer()
    assert turns(session) == [("one", "1"), ("three\nlines", None)]


def test_undo_takes_back_turn_by_turn(session: Session) -> None:
    say(session, "one", "1")
    take(session, "two")
    assert told(session, "/undo") == "taken back: two"
    assert told(session, "/undo") == "taken back: one"
    with pytest.raises(RequestError, match="nothing was said"):
        take(session, "/undo")


@pytest.mark.parametrize("command", ["/retry", "/edit", "/edit x", "/undo", "/forget"])
def test_before_the_first_question_there_is_nothing_to_change(session: Session, command: str) -> None:
    with pytest.raises(RequestError, match="nothing was said"):
        take(session, command)


def test_clear_forgets_all_but_the_system_prompt_and_what_was_saved(session: Session) -> None:
    take(session, "/system Be.")
    say(session, "one", "1")
    take(session, "/save x")
    take(session, "/clear")
    say(session, "two", "2")
    assert session.conversation.messages[0]["content"] == "Be."
    assert session.chats.read("x").conversation.turns == (Turn("one", "1"),)


def test_the_system_prompt_is_set_shown_and_taken_away(session: Session) -> None:
    assert told(session, "/system") == "there is no system prompt"
    take(session, "/system Answer  briefly.")
    assert told(session, "/system") == "system prompt: Answer  briefly."
    take(session, "/system none")
    assert session.conversation.messages == []


def test_history_shows_who_said_what(session: Session) -> None:
    assert told(session, "/history") == "nothing was said yet"
    take(session, "/system Be.")
    say(session, "one", "1")
    assert told(session, "/history") == "system: Be.\n\nuser: one\n\nassistant: 1"


def test_parameters_are_set_and_shown(session: Session) -> None:
    assert told(session, "/set temperature 0.7") == told(session, "/set temperature")
    assert session.params == SamplingParams(temperature=0.7)
    assert told(session, "/params") == told(session, "/set")
    assert "* temperature" in told(session, "/set")
    with pytest.raises(RequestError, match="temperature is"):
        take(session, "/set temperature -3")
    assert session.params.temperature == 0.7


@pytest.mark.parametrize("command", ["/quit", "/exit", "/bye"])
def test_leaving(session: Session, command: str) -> None:
    assert take(session, command) == Leave()


# ---- a full context


def fill(session: Session) -> None:
    for question in ("a" * 9, "b" * 9, "c" * 9):
        say(session, question, question[0])


def test_a_question_that_does_not_fit_waits_for_the_word_to_forget(session: Session) -> None:
    fill(session)
    with pytest.raises(RequestError, match="/forget"):
        take(session, "d" * 29)
    assert len(turns(session)) == 4
    assert take(session, "/forget") == Answer("the context is full: forgot the 2 oldest turns")
    assert turns(session) == [("c" * 9, "c"), ("d" * 29, None)]


def test_with_the_word_given_before_it_is_forgotten_at_once(tmp_path: Path) -> None:
    session = a_session(tmp_path, forgets=True, system="Be.")
    fill(session)
    assert take(session, "d" * 9) == Answer("the context is full: forgot the oldest turn")
    assert session.conversation.messages[0]["content"] == "Be."
    assert turns(session)[0] == ("b" * 9, "b")


def test_a_first_question_too_long_is_left_to_the_engine_to_refuse(session: Session) -> None:
    assert take(session, "x" * (ROOM + 1)) == Answer()


def test_for_a_question_too_long_by_itself_nothing_is_forgotten(session: Session) -> None:
    session.forgets = True
    fill(session)
    with pytest.raises(RequestError, match="the last question alone"):
        take(session, "x" * (ROOM + 1))
    assert len(turns(session)) == 4
    assert take(session, "d" * 11) == Answer("the context is full: forgot the oldest turn")


def test_forget_answers_an_open_question_that_fits_and_forgets_nothing(session: Session) -> None:
    say(session, "one", "1")
    take(session, "two")
    assert take(session, "/forget") == Answer()
    assert turns(session) == [("one", "1"), ("two", None)]


def test_forget_without_an_open_question_drops_the_oldest_turn(session: Session) -> None:
    fill(session)
    assert told(session, "/forget") == "forgotten: " + "a" * 9
    assert len(turns(session)) == 2


# ---- on disk


def test_a_conversation_with_a_name_is_kept_after_every_change(session: Session) -> None:
    say(session, "one", "1")
    assert session.chats.names() == []
    assert "x.json" in told(session, "/save x")
    for change in ("/set top_k 3", "/system Be.", "/undo"):
        take(session, change)
        kept = session.chats.read("x")
        assert (kept.conversation, dict(kept.params).get("top_k")) == (session.conversation, session.params.top_k)
    say(session, "two", "2")
    assert session.chats.read("x").conversation == session.conversation
    assert session.chats.read("x").model == "model"


def test_save_needs_a_name_once(session: Session) -> None:
    with pytest.raises(RequestError, match="no name yet"):
        take(session, "/save")
    take(session, "/save x")
    assert "x.json" in told(session, "/save")


def test_save_leaves_a_file_of_another_kind_alone(session: Session, tmp_path: Path) -> None:
    precious = tmp_path / "config.json"
    precious.write_text("{}")
    with pytest.raises(FormatError, match="no saved conversation"):
        take(session, f"/save {precious}")
    assert (precious.read_text(), session.name) == ("{}", None)


def test_load_goes_on_where_the_other_ended(session: Session, tmp_path: Path) -> None:
    assert "nothing is saved" in told(session, "/load")
    take(session, "/set top_k 3")
    take(session, "/set stop a b")
    say(session, "one", "1")
    take(session, "/save x")
    other = a_session(tmp_path)
    assert told(other, "/load") == "x"
    assert told(other, "/load x") == "x, turns so far: 1; the last question: one"
    assert (other.conversation, other.params) == (session.conversation, session.params)


def test_what_the_command_line_asks_for_stands_above_what_was_saved(session: Session, tmp_path: Path) -> None:
    take(session, "/set top_k 3")
    take(session, "/set top_p 0.5")
    take(session, "/system old")
    take(session, "/save x")
    other = Session("model", SamplingParams(top_k=9), Chats(tmp_path), fits)
    other.resume("x", other.chats.read("x"), system="new")
    assert other.params == SamplingParams(top_k=9, top_p=0.5)
    assert other.conversation.system == "new"


def test_a_failed_load_changes_nothing(session: Session) -> None:
    say(session, "one", "1")
    (session.chats.folder / "x.json").write_text('{"model": "m", "params": {"warmth": 1}, "messages": []}')
    for name in ("x", "y"):
        with pytest.raises(RequestError):
            take(session, f"/load {name}")
        assert turns(session) == [("one", "1")]
        assert session.name is None


def test_an_answer_of_nothing_leaves_the_question_open(session: Session) -> None:
    take(session, "one")
    session.answered("")
    assert session.conversation.awaits_answer


@pytest.mark.parametrize("text", ["\udcff", "/system \udcff", "/edit \udcff"])
def test_bytes_that_are_no_text_are_refused(session: Session, text: str) -> None:
    say(session, "one", "1")
    with pytest.raises(RequestError, match="no text"):
        take(session, text)
    assert turns(session) == [("one", "1")]
