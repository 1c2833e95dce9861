import errno
import json
import os
from pathlib import Path

import pytest

from polybit.errors import FormatError
from polybit.format.files import atomic_write_bytes, atomic_write_json, atomic_write_text, replacing


def test_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    atomic_write_text(path, "né\r\n")
    assert path.read_bytes() == "né\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_json_as_configs_have_it(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "a.json", {"é": [1, 2.5]})
    text = (tmp_path / "a.json").read_text(encoding="ascii")
    assert text.startswith('{\n    "\\u00e9"')
    assert json.loads(text) == {"é": [1, 2.5]}


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_contents(tmp_path: Path, raised: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(raised), replacing(path) as temporary:  # noqa: PT012 - the body is what is interrupted
        temporary.write_text("half of the n")
        raise raised
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("code", "finding"), [(errno.ENOSPC, "disk is full; free some space"), (errno.EIO, "error")])
def test_a_disk_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, finding: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FormatError, match=rf"a\.bin could not be written: .*{finding}") as error:
        atomic_write_bytes(tmp_path / "a.bin", b"data")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file or directory"):
        atomic_write_bytes(tmp_path / "gone" / "a.bin", b"data")
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="Not a directory"):
        atomic_write_bytes(tmp_path / "file" / "a.bin", b"data")
