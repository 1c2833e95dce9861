"""Names that are folders, names that are Hub ids, and what the Hub says; the network itself is faked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
)

from polybit.errors import ConfigError
from polybit.format import hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any]]:
    """What was asked of the Hub; it gives tmp_path."""
    calls: list[tuple[str, Any]] = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert "*.safetensors" in allow_patterns
        assert not any(pattern in allow_patterns for pattern in ("*", "*.bin", "*.py"))
        calls.append((repository, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def test_an_existing_folder_is_itself_even_if_it_looks_like_an_id(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.local_folder("owner/name") == Path("owner/name")
    assert asked == []


@pytest.mark.parametrize("name", ["missing", "./owner/name", "/a/b", "a/b/c", "~/models/x"])
def test_a_path_that_is_no_id_never_reaches_the_hub(asked: list[Any], name: str) -> None:
    assert hub.local_folder(name) == Path(name).expanduser()
    assert asked == []


def test_an_id_is_downloaded_with_its_revision(asked: list[Any], tmp_path: Path) -> None:
    assert hub.local_folder("owner/name") == tmp_path
    assert hub.local_folder("owner/name@4.0bpw") == tmp_path
    assert asked == [("owner/name", None), ("owner/name", "4.0bpw")]


class Unreachable(HfHubHTTPError.__bases__[0]):
    """An error of the HTTP library that the Hub's client is built on."""


@pytest.mark.parametrize(
    "error",
    [LocalEntryNotFoundError("no\nnetwork"), HFValidationError("bad name"), OSError("x"), Unreachable("no route")],
    ids=["offline", "name", "disk", "network"],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match="owner/name is no folder here") as caught:
        hub.local_folder("owner/name")
    assert "\n" not in str(caught.value)


def test_a_model_behind_terms_says_where_to_accept_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise GatedRepoError("403 Client Error", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"accepted its terms.*https://huggingface\.co/owner/name, .*hf auth login"):
        hub.local_folder("owner/name@main")


@pytest.mark.parametrize("name", [None, 5, "a" * 5000, "~nobody-of-this-name/model"])
def test_what_cannot_be_a_path_is_refused_in_one_line(asked: list[Any], name: Any) -> None:
    with pytest.raises(ConfigError, match="is no path") as caught:
        hub.local_folder(name)
    assert len(str(caught.value)) < 300
    assert asked == []


def test_an_empty_name_is_not_the_folder_one_stands_in(asked: list[Any]) -> None:
    with pytest.raises(ConfigError, match="name is empty"):
        hub.local_folder("")
    assert not asked


# ---- uploads


class FakeApi:
    """The Hub as an upload sees it."""

    def __init__(self) -> None:
        self.calls = list[tuple[str, Any]]()
        self.error: Exception | None = None

    def _called(self, name: str, given: Any) -> None:
        self.calls.append((name, given))
        if self.error is not None:
            raise self.error

    def whoami(self) -> dict[str, str]:
        self._called("whoami", None)
        return {"name": "me"}

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
        self._called("create", (repository, private, exist_ok))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, ignore_patterns: list[str]) -> None:
        self._called("upload", (repo_id, folder_path, commit_message, ignore_patterns))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


@pytest.mark.parametrize("public", [False, True])
def test_an_upload_makes_a_private_repository_unless_told_otherwise(api: FakeApi, tmp_path: Path, public: bool) -> None:
    assert hub.upload(tmp_path, "me/model", public, "done") == "https://huggingface.co/me/model"
    assert api.calls[0] == ("create", ("me/model", not public, True))
    assert api.calls[1] == ("upload", ("me/model", tmp_path, "done", [".*", "**/.*"]))


def test_a_refused_upload_says_how_to_try_again(api: FakeApi, tmp_path: Path) -> None:
    api.error = OSError("no network")
    with pytest.raises(ConfigError, match=rf"^{tmp_path} is complete.*no network.*hf upload me/model {tmp_path}$"):
        hub.upload(tmp_path, "me/model", False, "done")


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/model@branch", "", "me/mo del"])
def test_what_is_no_repository_is_refused_before_anything_is_asked(api: FakeApi, name: str) -> None:
    with pytest.raises(ConfigError, match="expected its owner and its name"):
        hub.check_upload(name)
    assert api.calls == []


def test_who_is_not_logged_in_learns_how(api: FakeApi) -> None:
    hub.check_upload("me/model")
    api.error = LocalTokenNotFoundError("no token")
    with pytest.raises(ConfigError, match=r"no token.*hf auth login"):
        hub.check_upload("me/model")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/c/hub/models--owner--some-name/snapshots/0a1b", "owner/some-name"),
        ("/c/hub/datasets--owner--name/snapshots/0a1b", None),
        ("/home/me/models/some--name", None),
        ("model", None),
    ],
)
def test_the_id_of_a_downloaded_folder(folder: str, expected: str | None) -> None:
    assert hub.hub_id_of(Path(folder)) == expected
