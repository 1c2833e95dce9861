from pathlib import Path

import pytest

from polybit.errors import ConfigError, JobError
from polybit.fields import check_callback, path_of


@pytest.mark.parametrize("given", ["a", "a/b c/ü", Path("a"), "README.md/inside"])
def test_paths(given: str | Path) -> None:
    assert path_of("out", given, JobError) == Path(given)


def test_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert path_of("out", "~/model", JobError) == tmp_path / "model"


@pytest.mark.parametrize("given", [None, 5, b"a", ["a"], "", "a\0b", "x" * 300])
def test_what_is_no_path_is_refused(given: object) -> None:
    with pytest.raises(JobError, match=r"^out is .*, which is no path: [^\n]+$"):
        path_of("out", given, JobError)


def test_a_ring_of_links_is_refused_and_a_link_to_nothing_is_a_name(tmp_path: Path) -> None:
    for name, target in (("ring", "ring"), ("new", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
    assert path_of("out", tmp_path / "new", JobError) == tmp_path / "new"
    with pytest.raises(JobError, match="which is no path"):
        path_of("out", tmp_path / "ring", JobError)


def test_callbacks() -> None:
    check_callback("progress", None, ConfigError)
    check_callback("progress", print, ConfigError)
    with pytest.raises(ConfigError, match="progress is 5, expected a function or None"):
        check_callback("progress", 5, ConfigError)
