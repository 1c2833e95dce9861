"""The quality tables of docs/quantization.md, made unattended: conversions and evaluations side by side, as JSON lines.

    PYTHONPATH=src python benchmarks/quality_tables.py WORK --models QWEN GEMMA --texts WIKITEXT PYTHON_DOCS --minutes 9

The most important comes first: every method's divergence from each model at some bits (kl), predicted beside measured
divergence of the last model at twenty settings (ranking), what each part of the quantizer is worth on the first model
(ablation), the default calibration beside half of the first text (calibration; nothing is judged on that half).
Nothing starts when the time is nearly over, and at its end what still runs is killed: the same command goes on there,
from what WORK holds, and writes the results file anew.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polybit.bench.report import source_commit
from polybit.format.files import atomic_write_json
from polybit.model.sizes import bits_per_weight, layer_sizes
from polybit.model.source import open_model
from polybit.quantizer.measurement import choose, predicted_nats, read_measurement
from polybit.quantizer.target import targets_of
from quantizer_ablation import VARIANTS
from quantizer_ablation import file_name as ablation_name

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("kl", "ranking", "ablation", "calibration")
METHODS = {"gptq-v2": ("--method", "gptq-v2"), "gptq-loss": (), "gptq-loss, tuned": ("--tune",)}
BASELINE, DEFAULT = "gptq-v2", "gptq-loss"
ABLATED_BITS = CALIBRATED_BITS = 3.0
RANKED_BITS = [round(float(bits), 2) for bits in np.linspace(2.3, 6.0, 20)]
RANKED_AT_ONCE = 5  # settings by one conversion
ROWS, RANKED_ROWS, LENGTH = 20, 8, 512  # windows, tokens a window
JUDGES = 2  # evaluations at a time, beside the conversions
LAST_SHARE = 0.03  # of the time, in which nothing starts

Line = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A process that can start when the files it needs are there; `lines` says what it found."""

    name: str
    command: tuple[str, ...]
    lines: Callable[[], list[Line]]
    needs: tuple[Path, ...] = ()
    judges: bool = False


@dataclass(frozen=True)
class Plan:
    work: Path
    models: Sequence[Path]
    texts: Sequence[Path]
    bits: Sequence[float]
    device: str
    tables: Sequence[str]

    def tasks(self) -> Iterator[Task]:
        """Of the tables that are asked for, the most important first."""
        by_name = {"kl": self.kl, "ranking": self.ranking, "ablation": self.ablation, "calibration": self.calibration}
        for table in TABLES:
            if table in self.tables:
                yield from by_name[table]()

    def kl(self) -> Iterator[Task]:
        for model in self.models:
            for method, flags in METHODS.items():
                yield from self._converted("kl", model, method, self.bits, flags, self.texts, ROWS)

    def ranking(self) -> Iterator[Task]:
        for start in range(0, len(RANKED_BITS), RANKED_AT_ONCE):
            bits = RANKED_BITS[start : start + RANKED_AT_ONCE]
            yield from self._converted("ranking", self.models[-1], DEFAULT, bits, (), self.texts[:1], RANKED_ROWS)

    def calibration(self) -> Iterator[Task]:
        flags, some = ("--calibration", str(self._second_half(self.texts[0]))), [CALIBRATED_BITS]
        for model in self.models:
            yield from self._converted("calibration", model, "on the text", some, flags, self.texts, ROWS)
            if "kl" not in self.tables or CALIBRATED_BITS not in self.bits:
                yield from self._converted("calibration", model, DEFAULT, some, (), self.texts, ROWS)

    def ablation(self) -> Iterator[Task]:
        """The first variant makes the measurements that all others begin with."""
        base = self.work / "ablation"
        for variant in sorted(VARIANTS, key=lambda name: name != BASELINE):
            found = base / f"{ablation_name(variant, ABLATED_BITS)}.json"
            earlier = VARIANTS[variant].tuned or BASELINE
            needs = () if variant == BASELINE else (base / f"{ablation_name(earlier, ABLATED_BITS)}.json",)
            given = [str(self.models[0]), str(self.texts[0]), str(base), "--bits", str(ABLATED_BITS)]
            asked = ["--variants", variant, "--device", self.device, "--rows", str(ROWS), "--length", str(LENGTH)]
            command = (sys.executable, str(ROOT / "benchmarks/quantizer_ablation.py"), *given, *asked)
            yield Task(f"ablation {variant}", command, partial(self._ablated, found), needs)

    def _ablated(self, found: Path) -> list[Line]:
        about = {"table": "ablation", "model": self.models[0].name, "text": self.texts[0].stem}
        return [about | json.loads(found.read_text(encoding="utf-8"))]

    def _converted(
        self,
        table: str,
        model: Path,
        method: str,
        bits: Sequence[float],
        flags: Sequence[str],
        texts: Sequence[Path],
        rows: int,
    ) -> Iterator[Task]:
        """One conversion to all of `bits`, and an evaluation of each result on each text as soon as it is there."""
        name = f"{table} {model.name} {method} {bits[0]:g}"
        out = self.work / name.replace(", ", "-").replace(" ", "-")
        asked = [argument for number in bits for argument in ("-b", f"{number:g}")]
        command = ["convert", str(model), str(out), *asked, *flags, "--no-self-test", "--device", self.device]
        about = {"table": table, "model": model.name, "method": method}
        yield Task(name, polybit(*command), list)
        for target in targets_of(out, bits):
            for text in texts:
                of = about | {"bits": target.bits, "text": text.stem, "rows": rows, "length": LENGTH}
                yield self._judged(model, target.folder, text, rows, of)

    def _judged(self, model: Path, folder: Path, text: Path, rows: int, about: Line) -> Task:
        name = f"{about['table']} {about['model']} {about['method']} {about['bits']:g} on {text.stem}"
        found = made(self.work / "scores") / f"{name}.json"
        on = ["--text", str(text), "--rows", str(rows), "--length", str(LENGTH), "--device", self.device]
        command = polybit("eval", str(folder), "--reference", str(model), *on, "--json", str(found))
        lines = partial(self._score, model, folder, found, about)
        return Task(name, command, lines, needs=(folder / "config.json",), judges=True)

    def _score(self, model: Path, folder: Path, found: Path, about: Line) -> list[Line]:
        source, written = open_model(model).spec, open_model(folder)
        bpw = bits_per_weight(size for sizes in layer_sizes(written) for size in sizes)
        predicted = {}
        if about["method"] != BASELINE:  # whose errors are not in nats
            predicted = {"predicted": predicted_nats(choose(read_measurement(folder, source), source, about["bits"]))}
        return [about | {"bpw": bpw} | predicted | json.loads(found.read_text(encoding="utf-8"))]

    def _second_half(self, text: Path) -> Path:
        whole, half = text.read_bytes().decode("utf-8"), self.work / f"{text.stem}-second-half.txt"
        half.write_bytes(whole[whole.index("\n", len(whole) // 2) + 1 :].encode("utf-8"))
        return half


def polybit(*arguments: str) -> tuple[str, ...]:
    return sys.executable, "-m", "polybit", *arguments


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---- running them


@dataclass
class Runner:
    work: Path
    results: Path
    conversions: int  # at a time
    started: float = field(default_factory=time.monotonic)
    lines: list[Line] = field(default_factory=list)
    running: dict[Task, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task], seconds: float) -> list[str]:
        """Names of the tasks that are not done in the end."""
        waiting = [task for task in tasks if not self._is_done(task)]
        failed, last_start, end = list[Task](), self.started + seconds * (1 - LAST_SHARE), self.started + seconds
        while time.monotonic() < end:
            for task in [task for task, process in self.running.items() if process.poll() is not None]:
                if not self._finish(task):
                    failed.append(task)
            if time.monotonic() < last_start:
                for task in self._startable(waiting):
                    waiting.remove(task)
                    self._start(task)
            if not self.running:
                break
            time.sleep(0.2)
        stopped = list(self.running)
        self._stop()
        return [task.name for task in (*failed, *stopped, *waiting)]

    def _is_done(self, task: Task) -> bool:
        """By an earlier run, whose lines are told again."""
        if not self._done_file(task).exists():
            return False
        for line in json.loads(self._done_file(task).read_text(encoding="utf-8")):
            self.tell(line)
        return True

    def _startable(self, waiting: Sequence[Task]) -> list[Task]:
        free = {True: JUDGES, False: self.conversions}
        for task in self.running:
            free[task.judges] -= 1
        found = []
        for task in waiting:
            if free[task.judges] > 0 and all(path.exists() for path in task.needs):
                free[task.judges] -= 1
                found.append(task)
        return found

    def _start(self, task: Task) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.conversions)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        log = self._file("logs", task, "txt")
        with log.open("ab") as output:
            self.running[task] = subprocess.Popen(
                task.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
        print(f"{self.elapsed:5.0f} s  {task.name}", file=sys.stderr, flush=True)

    def _finish(self, task: Task) -> bool:
        code = self.running.pop(task).returncode
        if code:
            said = self._file("logs", task, "txt").read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            self.tell({"failed": task.name, "exit_code": code, "said": said})
            return False
        lines = task.lines()
        atomic_write_json(self._done_file(task), lines)
        for line in (*lines, {"done": task.name, "at_s": round(self.elapsed)}):
            self.tell(line)
        return True

    def _stop(self) -> None:
        for process in self.running.values():
            process.kill()  # conversions go on where they were, evaluations anew
        for process in self.running.values():
            process.wait()

    def tell(self, line: Line) -> None:
        self.lines.append(line)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def _done_file(self, task: Task) -> Path:
        return self._file("done", task, "json")

    def _file(self, kind: str, task: Task, suffix: str) -> Path:
        return made(self.work / kind) / f"{task.name}.{suffix}"


# ---- what the lines add up to


def summary(lines: Sequence[Line]) -> Iterator[Line]:
    """Of the results that are there: ratios to the baseline and to calibration on the text, and the rank order."""
    for table, other, name in (("kl", BASELINE, "ratio"), ("calibration", "on the text", "calibration ratio")):
        tables = ("kl", "calibration") if table == "calibration" else (table,)
        found = {_place(line): line for line in lines if line.get("table") in tables}
        for (model, text, bits, method), line in found.items():
            compared = found.get((model, text, bits, other))
            if compared is not None and method != other and (table == "kl" or method == DEFAULT):
                about = {"model": model, "text": text, "bits": bits, "method": method}
                yield {"summary": name} | about | {"ratio": round(line["kl"] / compared["kl"], 3)}
    baseline = next((line["kl"] for line in lines if line.get("variant") == BASELINE), None)
    for line in lines:
        if line.get("table") == "ablation" and baseline:
            yield {"summary": "ablation", "variant": line["variant"], "ratio": round(line["kl"] / baseline, 3)}
    ranked = [line for line in lines if line.get("table") == "ranking"]
    if len(ranked) > 2:
        rho = spearman([line["predicted"] for line in ranked], [line["kl"] for line in ranked])
        yield {"summary": "ranking", "settings": len(ranked), "spearman": round(rho, 4)}


def _place(line: Line) -> tuple[str, str, float, str]:
    return line["model"], line["text"], line["bits"], line["method"]


def spearman(xs: Iterable[float], ys: Iterable[float]) -> float:
    """The correlation of ranks; no two values of either are alike."""
    first, second = (np.argsort(np.argsort(list(values))) for values in (xs, ys))
    return float(np.corrcoef(first, second)[0, 1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of unquantized models")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="UTF-8 texts")
    parser.add_argument("--results", type=Path, help="default: WORK/results.jsonl")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument(
        "--bits", type=float, nargs="+", default=[3.0, 2.5, 4.0, 6.0], help="of table kl, in this order"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--at-once", type=int, help="conversions at a time; default: 6 on a GPU with cores enough, else 1"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    given = parser.parse_args()
    results = given.results or made(given.work) / "results.jsonl"
    made(results.parent)
    results.unlink(missing_ok=True)
    at_once = given.at_once or (1 if given.device == "cpu" else max(1, min(6, (os.cpu_count() or 1) // 2)))
    plan = Plan(given.work, given.models, given.texts, given.bits, given.device, given.tables)
    runner = Runner(given.work, results, at_once)
    runner.tell({"commit": source_commit(), "torch": torch.__version__, "device": device_name(given.device)})
    left = runner.run(list(plan.tasks()), given.minutes * 60)
    for line in (*summary(runner.lines), {"not done": left, "seconds": round(runner.elapsed)}):
        runner.tell(line)
        print(json.dumps(line), file=sys.stderr)
    return 1 if left else 0


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    sys.exit(main())
