"""Run every test that needs a graphics card, and write down what they said, on which card, of which commit.

    PYTHONPATH=src python benchmarks/card_tests.py [--part 1/2] [--result FILE] [--commit HASH] [PATH ...]
    PYTHONPATH=src python benchmarks/card_tests.py --sanitize [--result FILE]
    PYTHONPATH=src python benchmarks/card_tests.py --merge FILE FILE ... [--result FILE]

Each file of tests runs in a process of its own, some at a time: a crash, or a card left in a bad state, spoils no other
file, and files share no memory, folders or figures. A process without a report, tests that were collected and did not
report, and files that were not reached in time are failures, and so is a result in which nothing passed. --sanitize
runs NVIDIA's compute-sanitizer over the CUDA kernels instead. --merge joins parts: what a later file says of the same
tests replaces what an earlier one said.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import sanitize
from card import ABOUT, Unfit, about_this_card, card_name

RESULTS = Path(__file__).parent / "results"
JOBS = 4  # test files at a time
NOT_REACHED = "not reached in time"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=["tests"], metavar="PATH", help="tests, all by default")
    parser.add_argument("--part", type=read_part, default=(1, 1), metavar="K/N", help="the K-th of N parts")
    parser.add_argument("--sanitize", action="store_true", help="run compute-sanitizer, and no tests")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="join the results of parts")
    parser.add_argument("--result", type=Path, help="default: benchmarks/results/card-tests-CARD.json")
    parser.add_argument("--commit", help="of the source tree, where git cannot be asked")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it; what is not done then has failed")
    parser.add_argument("--jobs", type=int, default=JOBS, help="test files at a time")
    args = parser.parse_args()
    try:
        result = merged([read_result(path) for path in args.merge]) if args.merge else run(args)
    except Unfit as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return tell(result, write(result, args.result))


def read_part(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; 2/3 is the second of three")
    return int(k), int(n)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The result of this card; written after each file of tests too, for whoever is cut short."""
    deadline = time.monotonic() + 60 * args.minutes
    about = about_this_card(args.commit)
    if args.sanitize:
        return about | {"expected": {}, "files": {}, "sanitizer": sanitize.check(deadline)}
    expected = collect(args.paths)
    k, n = args.part
    files = sorted(expected, key=lambda file: (-expected[file], file))[k - 1 :: n]
    result = about | {"expected": expected, "files": {file: failure(NOT_REACHED) for file in files}}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {pool.submit(run_file, file, expected[file], deadline): file for file in files}
        for done in as_completed(runs):
            file = runs[done]
            result["files"][file] = said = done.result()
            print(f"{file}: {counts(said)} in {said['seconds']} s", flush=True)
            write(result, args.result)
    return result


def collect(paths: Sequence[str]) -> dict[str, int]:
    """Test files that have something to run on a card, and how many tests each has."""
    command = [*pytest(), "--collect-only", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = Counter(line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line)
    if done.returncode or not found:
        broken = [line.removeprefix("ERROR ") for line in done.stdout.splitlines() if line.startswith("ERROR ")]
        why = "; ".join(broken) or last_line(done.stdout, done.stderr)
        raise Unfit(f"pytest cannot collect the tests for a card in {' '.join(paths)}: {why}")
    return dict(sorted(found.items()))


def pytest() -> list[str]:
    return [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]


def run_file(file: str, expected: int, deadline: float) -> dict[str, Any]:
    """What one file's tests said, in a process of its own."""
    left = deadline - time.monotonic()
    if left <= 0:
        return failure(NOT_REACHED)
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*pytest(), f"--junitxml={report}", file]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=left)
        except subprocess.TimeoutExpired:
            return failure(f"stopped after {left:.0f} s", time.monotonic() - started)
        seconds = time.monotonic() - started
        if not report.exists():
            told = last_line(done.stdout, done.stderr)
            return failure(f"no report, pytest ended with code {done.returncode}: {told}", seconds)
        said = read_report(report)
    return said | {"problem": problem_of(said, expected, done.returncode), "seconds": round(seconds)}


def failure(why: str, seconds: float = 0.0) -> dict[str, Any]:
    """A file of which nothing is known but that it did not get through."""
    return {"passed": 0, "failed": [], "skipped": [], "problem": why, "seconds": round(seconds)}


def read_report(report: Path) -> dict[str, Any]:
    passed, failed, skipped = 0, list[dict[str, str]](), list[dict[str, str]]()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        skip = case.find("skipped")
        if wrong is not None:
            failed.append(named(case, wrong))
        elif skip is not None:
            skipped.append(named(case, skip))
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}


def named(case: ElementTree.Element, outcome: ElementTree.Element) -> dict[str, str]:
    lines = outcome.get("message", "").splitlines() or ["no message"]
    return {"test": f"{case.get('classname', '')}::{case.get('name', '')}", "reason": lines[0][:300]}


def problem_of(said: dict[str, Any], expected: int, code: int) -> str | None:
    """What is wrong with a file beside the tests that failed."""
    reported = said["passed"] + len(said["failed"]) + len(said["skipped"])
    if reported < expected:
        return f"{expected} tests were collected, but {reported} reported; pytest ended with code {code}"
    if code and not said["failed"]:
        return f"pytest ended with code {code} though no test failed"
    return None


def last_line(*texts: str) -> str:
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


# ---- results


def read_result(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unfit(f"{path} holds no result of this program ({error})") from error
    return result


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result for parts of the same commit on the same kind of card."""
    for key in ABOUT:
        found = sorted({str(part[key]) for part in parts})
        if len(found) > 1:
            raise Unfit(f"the parts differ in {key} ({', '.join(found)}); run them anew on one card, of one commit")
    whole = {key: parts[0][key] for key in ABOUT} | {"expected": {}, "files": {}}
    for part in parts:
        whole["expected"] |= part["expected"]
        whole["files"] |= part["files"]
        whole |= {"sanitizer": part["sanitizer"]} if "sanitizer" in part else {}
    return whole


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Counts over all files, and everything that keeps the result from being green."""
    files = result["files"]
    missing = sorted(set(result["expected"]) - set(files))
    problems = [f"{file}: {said['problem']}" for file, said in files.items() if said["problem"]]
    problems += [f"{file}: in no part" for file in missing]
    problems += [f"{tool}: {why}" for tool, why in result.get("sanitizer", {}).items() if why != sanitize.CLEAN]
    passed = sum(said["passed"] for said in files.values())
    failed = sum(len(said["failed"]) for said in files.values())
    if not passed and (files or "sanitizer" not in result):
        problems.append("no test passed: nothing ran on the card")
    return {
        "green": not failed and not problems,
        "passed": passed,
        "failed": failed,
        "skipped": sum(len(said["skipped"]) for said in files.values()),
        "seconds": sum(said["seconds"] for said in files.values()),
        "problems": problems,
    }


def write(result: dict[str, Any], path: Path | None) -> Path:
    path = path or RESULTS / f"card-tests-{card_name(result['card'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(summary(result) | result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def tell(result: dict[str, Any], path: Path) -> int:
    found = summary(result)
    for file, said in result["files"].items():
        for case in said["failed"]:
            print(f"FAILED {file} {case['test']}: {case['reason']}")
    for line in found["problems"]:
        print(f"PROBLEM {line}")
    for tool, why in result.get("sanitizer", {}).items():
        print(f"compute-sanitizer {tool}: {why}")
    print(f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped on {result['card']}: {path}")
    return 0 if found["green"] else 1


def counts(said: dict[str, Any]) -> str:
    text = f"{said['passed']} passed, {len(said['failed'])} failed, {len(said['skipped'])} skipped"
    return f"{text}, {said['problem']}" if said["problem"] else text


if __name__ == "__main__":
    sys.exit(main())
