"""The program that makes the quality tables: what it runs, when, and what its lines add up to."""

import json
import sys
from pathlib import Path

import pytest

from quality_tables import Line, Plan, Runner, Task, spearman, summary


def task(name: str, code: str, *needs: Path, found: Line | None = None) -> Task:
    return Task(name, (sys.executable, "-c", code), lambda: [] if found is None else [found], needs)


def runner(folder: Path) -> Runner:
    return Runner(folder, folder / "results.jsonl", conversions=2)


def told(folder: Path) -> list[Line]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_task_waits_for_the_files_it_needs(tmp_path: Path) -> None:
    made = tmp_path / "made"
    second = task("second", f"assert open({str(made)!r}).read() == 'x'", made, found={"kl": 1.0})
    first = task("first", f"open({str(made)!r}, 'w').write('x')")
    assert runner(tmp_path).run([second, first], seconds=60) == []
    assert [line.get("done") for line in told(tmp_path)] == ["first", None, "second"]
    assert told(tmp_path)[1] == {"kl": 1.0}


def test_what_is_done_is_told_again_and_not_run_again(tmp_path: Path) -> None:
    runner(tmp_path).run([task("a", "pass", found={"kl": 1.0})], seconds=60)
    (tmp_path / "results.jsonl").unlink()
    assert runner(tmp_path).run([task("a", "raise SystemExit(1)")], seconds=60) == []
    assert told(tmp_path) == [{"kl": 1.0}]


def test_a_failure_is_told_with_its_last_words_and_holds_nobody_else_up(tmp_path: Path) -> None:
    tasks = [task("bad", "raise SystemExit('no such model')"), task("after it", "pass", tmp_path / "never")]
    assert runner(tmp_path).run([*tasks, task("good", "pass")], seconds=60) == ["bad", "after it"]
    failed = next(line for line in told(tmp_path) if "failed" in line)
    assert failed == {"failed": "bad", "exit_code": 1, "said": ["no such model"]}


def test_what_runs_when_the_time_is_over_is_killed_and_not_done(tmp_path: Path) -> None:
    slow = runner(tmp_path)
    assert slow.run([task("slow", "import time; time.sleep(600)"), task("none", "pass", tmp_path / "no")], 0.5) == [
        "slow",
        "none",
    ]
    assert slow.elapsed < 60


def test_every_table_has_its_tasks_and_every_task_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a line\n" * 10)
    plan = Plan(tmp_path, [Path("m"), Path("n")], [tmp_path / "text.txt"], [3.0, 2.5], "cpu", ["kl", "ranking"])
    names = [each.name for each in plan.tasks()]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("kl") for name in names) == 2 * 3 * (1 + 2)
    assert sum(name.startswith("ranking n") for name in names) == 4 + 20


def score(method: str, kl: float, table: str = "kl") -> Line:
    return {"table": table, "model": "m", "text": "t", "bits": 3.0, "method": method, "kl": kl}


def test_ratios_are_to_the_baseline_and_to_calibration_on_the_text() -> None:
    lines = [score("gptq-v2", 0.4), score("gptq-loss", 0.1), score("on the text", 0.08, table="calibration")]
    found = {line["summary"]: line["ratio"] for line in summary(lines)}
    assert found == {"ratio": 0.25, "calibration ratio": 1.25}


def test_the_rank_order_knows_a_swap() -> None:
    assert spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]) == pytest.approx(1.0)
    assert spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0]) == pytest.approx(0.8)
