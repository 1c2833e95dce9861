"""The program that runs the tests of a card: whatever goes wrong on one, its result is not green."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import card_tests
import sanitize
from card import ABOUT, Unfit, card_name

HEADER = dict.fromkeys(ABOUT, "1")
PASSED = {"passed": 2, "failed": [], "skipped": [], "problem": None, "seconds": 1}
SKIPPED = PASSED | {"passed": 0, "skipped": [{"test": "test_a", "reason": "no model"}]}


def outcome(folder: Path, body: str, expected: int = 1, seconds: float = 60.0) -> dict[str, Any]:
    path = folder / "test_made_up.py"
    path.write_text(f"import os, time, pytest\npytestmark = pytest.mark.gpu\n{body}\n")
    return card_tests.run_file(str(path), expected, time.monotonic() + seconds)


def result(**files: dict[str, Any]) -> dict[str, Any]:
    return HEADER | {"expected": dict.fromkeys(files, 2), "files": files}


def is_green(said: dict[str, Any]) -> bool:
    return bool(card_tests.summary(said)["green"])


def test_passed_failed_and_skipped_are_counted_and_named(tmp_path: Path) -> None:
    body = "def test_a(): pass\ndef test_b(): assert 1 == 2\ndef test_c(): pytest.skip('no second card')"
    said = outcome(tmp_path, body, expected=3)
    assert (said["passed"], said["problem"]) == (1, None)
    assert [case["test"].rpartition("::")[2] for case in said["failed"]] == ["test_b"]
    assert said["skipped"][0]["reason"] == "no second card"
    assert not is_green(result(file=said))


def test_what_passes_is_green(tmp_path: Path) -> None:
    assert is_green(result(file=outcome(tmp_path, "def test_a(): pass")))


@pytest.mark.parametrize(
    ("body", "expected", "seconds", "problem"),
    [
        ("def test_a(): os._exit(3)", 1, 60, "no report, pytest ended with code 3"),
        ("def test_a(): pass", 2, 60, "2 tests were collected, but 1 reported"),
        ("def test_a(): time.sleep(60)", 1, 3, "stopped after 3 s"),
        ("def test_a(): pass", 1, 0, "not reached in time"),
    ],
)
def test_what_does_not_get_through_is_a_problem(
    tmp_path: Path, body: str, expected: int, seconds: float, problem: str
) -> None:
    said = outcome(tmp_path, body, expected, seconds)
    assert said["problem"].startswith(problem)
    assert not is_green(result(file=said, other=PASSED))


def test_a_file_that_cannot_be_read_fails(tmp_path: Path) -> None:
    assert outcome(tmp_path, "raise RuntimeError('driver')")["failed"]


def test_nothing_but_skips_is_not_green() -> None:
    assert is_green(result(a=PASSED, b=SKIPPED))
    assert not is_green(result(a=SKIPPED))


class TestMerging:
    def test_needs_every_file_that_was_collected(self) -> None:
        expected = {"a": 2, "b": 2}
        first, second = (result(**{name: PASSED}) | {"expected": expected} for name in expected)
        assert not is_green(first)
        assert is_green(card_tests.merged([first, second]))

    def test_later_results_replace_earlier_ones(self) -> None:
        assert is_green(card_tests.merged([result(a=card_tests.failure("crash")), result(a=PASSED)]))

    def test_never_joins_other_commits_or_cards(self) -> None:
        with pytest.raises(Unfit, match="differ in commit"):
            card_tests.merged([result(a=PASSED), result(b=PASSED) | {"commit": "2"}])

    def test_keeps_what_the_sanitizer_said(self) -> None:
        watched = result() | {"sanitizer": {"memcheck": sanitize.CLEAN, "racecheck": "1 hazard"}}
        assert not is_green(card_tests.merged([watched, result(a=PASSED)]))


class TestSanitizer:
    @pytest.mark.parametrize(
        ("code", "text", "said"),
        [
            (0, "20 results are right\n========= ERROR SUMMARY: 0 errors", sanitize.CLEAN),
            (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", sanitize.CLEAN),
            (0, "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)", "2 hazards displayed"),
            (9, "========= ERROR SUMMARY: 3 errors", "code 9: 3 errors"),
            (1, "wrong product\n========= ERROR SUMMARY: 0 errors", "code 1"),
            (0, "Error: Target application terminated", "code 0: Error: Target"),
        ],
    )
    def test_is_clean_only_where_it_says_so(self, code: int, text: str, said: str) -> None:
        assert sanitize.outcome("tool", subprocess.CompletedProcess([], code, text)).startswith(said)

    def test_that_is_missing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
        assert set(sanitize.check(time.monotonic())) == {"memcheck", "racecheck"}
        assert not is_green(result(a=PASSED) | {"sanitizer": sanitize.check(time.monotonic())})


def test_without_a_card_there_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["card_tests.py", "--result", str(tmp_path / "result.json")])
    assert card_tests.main() == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_a_result_on_disk_begins_with_what_came_of_it(tmp_path: Path) -> None:
    path = card_tests.write(result(a=PASSED), tmp_path / "result.json")
    written = json.loads(path.read_text())
    assert list(written)[:2] == ["green", "passed"]
    assert card_tests.merged([written])["files"] == {"a": PASSED}
    assert card_name("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
