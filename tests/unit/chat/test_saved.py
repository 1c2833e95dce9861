"""Saved conversations: the round trip, names and paths, damaged files, and a disk that refuses."""

import json
import os
from pathlib import Path

import pytest

from polybit.chat.conversation import Conversation, Turn
from polybit.chat.saved import Chats, Saved
from polybit.errors import FormatError, RequestError

TALK = Saved(Conversation("Sei.", (Turn("größer?", "ja ✓"), Turn("why", None))), {"top_k": 3}, "model")


@pytest.fixture
def chats(tmp_path: Path) -> Chats:
    return Chats(tmp_path / "data" / "chats")


def test_what_was_written_is_read(chats: Chats) -> None:
    path = chats.write("trip to Rome", TALK)
    assert path == chats.folder / "trip to Rome.json"
    assert chats.read("trip to Rome") == TALK
    assert chats.names() == ["trip to Rome"]
    assert "größer? " not in path.read_text(encoding="utf-8")
    assert "größer?" in path.read_text(encoding="utf-8")
    assert os.name == "nt" or chats.folder.stat().st_mode & 0o077 == 0


def test_a_path_leads_anywhere(chats: Chats, tmp_path: Path) -> None:
    assert chats.write(str(tmp_path / "here.json"), TALK) == tmp_path / "here.json"
    assert chats.read(f"{tmp_path}/here.json") == TALK
    assert chats.path("here.json") == Path("here.json")
    assert chats.names() == []


@pytest.mark.parametrize("name", ["", ".hidden", "a\nb", "*", "a:b"])
def test_other_names_are_refused(chats: Chats, name: str) -> None:
    with pytest.raises(RequestError, match="no name for a conversation"):
        chats.path(name)


def test_a_name_that_is_not_there_is_refused_with_the_nearest(chats: Chats) -> None:
    with pytest.raises(RequestError, match="nothing was saved yet"):
        chats.read("trip")
    chats.write("trip", TALK)
    with pytest.raises(RequestError, match="did you mean trip"):
        chats.read("trop")


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "it holds 'list'"),
        (b"{}", "it holds \\[\\]"),
        (b'{"model": 1, "params": {}, "messages": []}', "model must be text"),
        (b'{"model": "m", "params": {}, "messages": [1]}', "an object with role"),
        (b'{"model": "m", "params": {}, "messages": [{"role": "tool"}]}', "by turns"),
        (b'{"model": "m", "params": {}, "messages": [], "more": 1}', "it holds"),
    ],
)
def test_damaged_files_are_one_line(chats: Chats, contents: bytes, complaint: str) -> None:
    chats.folder.mkdir(parents=True)
    (chats.folder / "x.json").write_bytes(contents)
    with pytest.raises(FormatError, match=complaint) as raised:
        chats.read("x")
    assert str(chats.folder / "x.json") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_conversations_may_be_replaced(chats: Chats, tmp_path: Path) -> None:
    chats.write("x", TALK)
    chats.check_free("x")
    chats.check_free("y")
    (tmp_path / "config.json").write_text('{"architectures": []}')
    with pytest.raises(FormatError, match=r"config\.json is no saved conversation.*take another name"):
        chats.check_free(str(tmp_path / "config.json"))


def test_a_write_that_fails_leaves_the_old_file(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chats.write("x", TALK)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FormatError, match="the disk is full"):
        chats.write("x", Saved(Conversation(), {}, "other"))
    assert path.read_bytes() == before
    assert list(chats.folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="could not be written"):
        Chats(tmp_path / "file" / "chats").write("x", TALK)


def test_messages_are_as_other_programs_take_them(chats: Chats) -> None:
    entries = json.loads(chats.write("x", TALK).read_bytes())
    assert entries["messages"][0] == {"role": "system", "content": "Sei."}
    assert entries["params"] == {"top_k": 3}
