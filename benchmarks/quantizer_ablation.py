"""What each part of the quantizer is worth: one model converted with and without it, at the same bits. JSON to stdout.

    PYTHONPATH=src python benchmarks/quantizer_ablation.py MODEL TEXT WORK --bits 3.0 2.5 [--variants NAME ...]

Every variant calibrates on the same rows and is judged by its divergence from MODEL on TEXT, as a ratio to that of the
original's method at the same bits. What variants share (the text, the gradients, the measurement of each method) is
computed once and kept in WORK, and so is every result: a run that is interrupted, or asked for more variants, goes on.
"""

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from polybit.bench.report import source_commit
from polybit.cli.evaluate import read_text, tokenize
from polybit.format.files import atomic_write_json
from polybit.model.evaluate import Score, evaluate
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.quantizer import convert as conversion
from polybit.quantizer import options as conversion_options
from polybit.quantizer import passes
from polybit.quantizer.convert import ConvertOptions, ConvertProgress, convert
from polybit.quantizer.gptq import Quantized, quantize
from polybit.quantizer.method import METHODS, Method
from polybit.quantizer.sensitivity import Sensitivity

JOB, MEASUREMENT, TEXT_FILES = ".polybit-job", "measurement.json", ("tokens.safetensors", "calibration.json")
LOSS, ORIGINAL = METHODS["gptq-loss"], METHODS["gptq-v2"]


class Kept(Exception):
    """Ends a conversion whose result is written, before its job is deleted."""


@dataclass(frozen=True)
class Variant:
    method: Method
    presets: bool = False  # bits are allocated by the original's measurement
    tuned: str | None = None  # the variant whose result is tuned
    changed: Callable[[], AbstractContextManager[Any]] = nullcontext  # what is put in another's place


def alike() -> AbstractContextManager[Any]:
    """Every token and every output column counts as one."""
    found = conversion.kept_sensitivities

    def ones(*of: Any) -> dict[str, Sensitivity]:
        by_key = found(*of)
        return {
            key: Sensitivity(torch.ones_like(each.tokens), torch.ones_like(each.columns))
            for key, each in by_key.items()
        }

    return patch.object(conversion, "kept_sensitivities", ones)


def searched() -> AbstractContextManager[Any]:
    """One factor for the scales of all columns of a group, as the original finds it."""

    def without_columns(weight: Any, factor: Any, layout: Any, columns: Any, rounding: Any) -> Quantized:
        return quantize(weight, factor, layout, rounding)

    return patch.object(passes, "quantize_fitted", without_columns)


def at_once() -> AbstractContextManager[Any]:
    """Statistics of all matrices of a module before any is quantized."""
    in_order = passes._in_order
    return patch.object(passes, "_in_order", lambda *of: list(in_order(*of)))


VARIANTS: Mapping[str, Variant] = {
    "gptq-v2": Variant(ORIGINAL),
    "gptq-loss": Variant(LOSS),
    "all tokens and columns alike": Variant(LOSS, changed=alike),
    "the original's scales": Variant(LOSS, changed=searched),
    "matrices of a module at once": Variant(LOSS, changed=at_once),
    "errors of inputs not made up for": Variant(replace(LOSS, correction=0.0)),
    "no sweeps": Variant(replace(LOSS, sweeps=0)),
    "correlations trusted fully": Variant(replace(LOSS, shrinkage=0.0)),
    "damping of the original": Variant(replace(LOSS, damping=ORIGINAL.damping)),
    "the original's presets": Variant(LOSS, presets=True),
    "gptq-v2, tuned": Variant(ORIGINAL, tuned="gptq-v2"),
    "gptq-loss, tuned": Variant(LOSS, tuned="gptq-loss"),
}


@dataclass(frozen=True)
class Bench:
    model: Path
    text: Path
    work: Path
    options: ConvertOptions  # bits and method are the variants'
    rows: int
    length: int

    def result(self, name: str, bits: float) -> dict[str, Any]:
        """What the variant reaches, converted and judged unless that is known."""
        known = self.work / f"{file_name(name, bits)}.json"
        if not known.exists():
            started = time.monotonic()
            folder = self.converted(name, bits)
            seconds = time.monotonic() - started
            atomic_write_json(
                known, {"variant": name, "bits": bits, "seconds": round(seconds), **asdict(self.judge(folder))}
            )
        found: dict[str, Any] = json.loads(known.read_text())
        return found

    def converted(self, name: str, bits: float) -> Path:
        """The variant's folder, its job in it standing before the result is written."""
        variant, out = VARIANTS[name], self.work / file_name(name, bits)
        if (out / "config.json").exists():
            return out
        if not (out / JOB).exists():
            self._begin(name, out / JOB, bits)
        options = replace(self.options, bits=bits, method=name, tune=variant.tuned is not None)
        with variant.changed(), patch.object(conversion_options, "METHODS", {name: variant.method}), suppress(Kept):
            convert(self.model, out, options, stop_at_the_end)
        return out

    def _begin(self, name: str, job: Path, bits: float) -> None:
        variant = VARIANTS[name]
        of_method = self.measured("gptq-loss" if variant.method.by_loss else "gptq-v2")
        begun, stage = (
            (of_method, "quantize") if variant.tuned is None else (self.converted(variant.tuned, bits) / JOB, "tune")
        )
        copy_job(begun, job, stage, bits=bits, method=name, tune=variant.tuned is not None)
        if variant.presets:
            shutil.copy(self.measured("gptq-v2") / MEASUREMENT, job / MEASUREMENT)

    def measured(self, method: str) -> Path:
        """The job of a conversion that has judged its options and quantized nothing yet."""
        job = self.work / f"measured-{method}"
        if not (job / MEASUREMENT).exists():
            if method != "gptq-loss" and not job.exists():
                copy_job(self.measured("gptq-loss"), job, "measure", only=TEXT_FILES, method=method)
            convert(
                self.model, self.work / "unused", replace(self.options, method=method, measure_only=True, work_dir=job)
            )
        return job

    def judge(self, folder: Path) -> Score:
        options = LoadOptions(device=self.options.device)
        source, found = open_model(self.model, options), open_model(folder, options)
        windows = tokenize(source, read_text(self.text), self.length, self.rows, 0)
        return evaluate(load(found), windows, load(source))


def copy_job(job: Path, target: Path, stage: str, only: Sequence[str] | None = None, **identity: Any) -> None:
    """The same job, or some of its files, as one of another identity that stands before `stage`."""
    partial = target.with_name(f"{target.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    if only is None:
        shutil.copytree(job, partial)
    else:
        partial.mkdir(parents=True)
        for name in only:
            shutil.copy(job / name, partial / name)
    state = json.loads((job / "job.json").read_text())
    state["identity"] |= identity
    state["progress"] = {"stage": stage, "layer": 0}
    atomic_write_json(partial / "job.json", state)
    partial.rename(target)


def stop_at_the_end(progress: ConvertProgress) -> None:
    if (progress.stage, progress.done) == ("write", progress.total):
        raise Kept


def file_name(variant: str, bits: float) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{variant} {bits:g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--calibration", help="a text file, a folder, a dataset; without it, found and written text")
    parser.add_argument("--rows", type=int, default=20, help="windows of TEXT")
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    options = ConvertOptions(calibration=given.calibration, device=given.device)
    bench = Bench(given.model, given.text, given.work, options, given.rows, given.length)
    results = list[dict[str, Any]]()
    for bits in given.bits:
        baseline = bench.result("gptq-v2", bits)["kl"]
        for name in given.variants:
            found = bench.result(name, bits)
            results.append(found | {"kl_ratio": round(found["kl"] / baseline, 3)})
            print(f"{bits:g} bits, {name}: {found['kl']:.4f}, {found['kl'] / baseline:.2f}x", file=sys.stderr)
    json.dump({"commit": source_commit(), "model": given.model.name, "results": results}, sys.stdout, indent=4)
    print()
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
