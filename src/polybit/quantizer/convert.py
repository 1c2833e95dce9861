"""`convert`: a model folder in, EXL2 folders out. It resumes where an interrupted run of the same job stopped."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from polybit.errors import JobError
from polybit.fields import check_callback, path_of, replaced
from polybit.format.files import make_folder, replacing
from polybit.format.hub import check_upload, upload
from polybit.kernels.registry import load_backend
from polybit.kernels.rounding import choose_rounding
from polybit.model.device import current, describe, use_threads
from polybit.model.options import LoadOptions
from polybit.model.source import ModelSource, open_model
from polybit.modules.rope import RopeTables
from polybit.quantizer.begin import (
    check_source,
    devices_of,
    judging_stages,
    making_stages,
    open_job,
    read_kept_calibration,
    teller,
)
from polybit.quantizer.calibration import Calibration
from polybit.quantizer.job import STAGES, Job
from polybit.quantizer.kept import corrupt
from polybit.quantizer.measure import MeasuredOption
from polybit.quantizer.measurement import (
    FILE_NAME,
    choose,
    option_json,
    read_measurement,
    read_option,
    write_measurement,
)
from polybit.quantizer.options import ConvertOptions, ConvertProgress, ConvertResult, Report, check_options
from polybit.quantizer.output import write_model
from polybit.quantizer.passes import (
    Workbench,
    go_back,
    loss_gradient,
    measure_layer,
    quantize_head,
    quantize_layer,
)
from polybit.quantizer.progress import Teller
from polybit.quantizer.report.card import read_card
from polybit.quantizer.report.findings import gather
from polybit.quantizer.report.write import write_report
from polybit.quantizer.reuse import about, file_beside, write_sensitivities
from polybit.quantizer.selftest import refuse_garbage, self_test
from polybit.quantizer.sensitivity import Sensitivity, keep_sensitivities, kept_sensitivities
from polybit.quantizer.slots import Slot, all_slots
from polybit.quantizer.target import Target, targets_of
from polybit.quantizer.tested import SelfTest
from polybit.quantizer.tune import tune
from polybit.version import __version__

__all__ = ["ConvertOptions", "ConvertProgress", "ConvertResult", "Report", "convert"]

log = logging.getLogger(__name__)

SECONDS = "seconds"  # of the stages that all models share; a model's own have its number behind it
TUNED = "tuned"  # name of a kept file


@overload
def convert(
    source_folder: Path | str,
    out_folder: Path | str,
    options: ConvertOptions | None = None,
    progress: Report | None = None,
    *,
    bits: Sequence[float],
    **fields: Any,
) -> list[ConvertResult]: ...


@overload
def convert(
    source_folder: Path | str,
    out_folder: Path | str,
    options: ConvertOptions | None = None,
    progress: Report | None = None,
    *,
    bits: float | None = None,
    **fields: Any,
) -> ConvertResult: ...


def convert(
    source_folder: Path | str,
    out_folder: Path | str,
    options: ConvertOptions | None = None,
    progress: Report | None = None,
    *,
    bits: float | Sequence[float] | None = None,
    **fields: Any,
) -> ConvertResult | list[ConvertResult]:
    """Convert the unquantized model in `source_folder` to EXL2 in `out_folder`, which must be new or this job's own.

    `fields` are those of ConvertOptions, and replace what `options` says: `convert(source, out, bits=3.5)`. A list of
    bits makes a model of each, in folders of `out_folder` (see targets_of), and returns a list.
    Raises ConfigError, FormatError, CalibrationError or JobError; what was done by then is kept for another run.
    SelfTestFailed: all was done, but a result is garbage.
    """
    options = replaced(_checked(options), fields, "option of conversion", JobError)
    if isinstance(bits, Sequence) and not isinstance(bits, str):
        return convert_each(source_folder, out_folder, options, bits, progress)
    if bits is not None:
        options = replace(options, bits=bits)
    (result,) = convert_each(source_folder, out_folder, options, [options.bits], progress)
    return result


def convert_each(
    source_folder: Path | str,
    out_folder: Path | str,
    options: ConvertOptions,
    bits: Sequence[float],
    progress: Report | None = None,
) -> list[ConvertResult]:
    """One model for each of `bits`, whatever `options` says of them; all by the same calibration and measurement."""
    check_options(options)
    check_callback("progress", progress, JobError)
    out = path_of("the result's folder", out_folder, JobError)
    targets = targets_of(out, [replace(options, bits=each).bits for each in bits])
    check_push(options, len(targets))
    load_options = LoadOptions(rope_scale=options.rope_scale, rope_alpha=options.rope_alpha)
    source = open_model(source_folder, load_options)
    check_source(source, options, targets)
    devices = devices_of(options)
    use_threads(None)
    tell = teller(options, targets, progress or (lambda _: None))
    started = time.monotonic()
    with (
        torch.no_grad(),
        current(devices[0]),
        open_job(source, out, options, targets, partial(tell, "calibrate")) as job,
    ):
        seconds = {"calibrate": time.monotonic() - started}
        results = Conversion(source, out, options, targets, devices, job, tell, seconds).run()
    if options.push_to_hub is not None:
        message = f"{results[0].bits:.2f} bits a weight, by polybit {__version__}"
        log.info("uploaded to %s", upload(results[0].folder, options.push_to_hub, options.public, message))
    return results


def check_push(options: ConvertOptions, num_models: int) -> None:
    """JobError or ConfigError where an upload could only fail at the end."""
    if options.push_to_hub is None:
        return
    if num_models > 1:
        raise JobError(
            f"push_to_hub takes one model, not {num_models}; ask for one size, or upload each folder with: hf upload"
        )
    check_upload(options.push_to_hub)


def _checked(options: ConvertOptions | None) -> ConvertOptions:
    if options is not None and not isinstance(options, ConvertOptions):
        raise JobError(f"options is of type {type(options).__name__}, expected ConvertOptions")
    return options or ConvertOptions()


@dataclass
class Conversion:
    """The stages of one job, in order. Each starts from what the job's folder holds."""

    source: ModelSource
    out: Path
    options: ConvertOptions  # whose bits are not asked: each target has its own
    targets: tuple[Target, ...]
    devices: tuple[torch.device, ...]
    job: Job
    tell: Teller
    seconds: dict[str, float]  # of the stages that all models share, so far
    tests: dict[int, SelfTest] = field(default_factory=dict)  # by model

    def run(self) -> list[ConvertResult]:
        self.seconds = self.go_through(SECONDS, judging_stages(self.options), self.seconds)
        if self.options.how.by_loss:
            write_sensitivities(self.job, self.source.spec, about(self.job.identity, self.options, self.calibration))
        self.save_measurement()
        if self.options.measure_only:
            return [self.result(self.out, 0.0, {}, self.measurement_file, {}, None)]
        results = [self.make(number) for number in range(len(self.targets))]
        self.job.delete()
        for result in results:
            if result.self_test is not None:
                refuse_garbage(result.self_test, result.folder)
        return results

    def make(self, number: int) -> ConvertResult:
        """One of the models, unless an earlier run did."""
        target, is_due = self.targets[number], number == self.job.progress.model
        seconds = dict[str, float]()
        if is_due:
            self.tell = replace(self.tell, model=number)
            seconds = self.go_through(f"{SECONDS}-{number}", making_stages(self.options))
        chosen, copy = self.choose(target), target.folder / self.measurement_file.name
        test = self.tests.get(number)
        result = self.result(target.folder, self.bits(chosen), self.errors(number), copy, seconds, test)
        if is_due:
            self.report(target, chosen, result)
            if number + 1 < len(self.targets):
                self.job.next_model()
        return result

    def report(self, target: Target, chosen: list[MeasuredOption], result: ConvertResult) -> None:
        written, options = open_model(target.folder, self.source.options), replace(self.options, bits=target.bits)
        findings = gather(self.source, written, options, result, chosen, self.calibration.record, __version__)
        write_report(findings, target.folder, read_card(self.source.folder))

    def go_through(
        self, kept_as: str, stages: Sequence[str], so_far: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Those that are not done yet; the seconds of each, with those of earlier runs and `so_far`."""
        judge = {"forward": self.go_forward, "backward": self.go_back, "measure": self.measure}
        run = judge | {"quantize": self.quantize, "head": self.quantize_head, "tune": self.tune}
        run |= {"write": self.write, "test": self.test}
        seconds = dict(so_far or {}) | kept_seconds(self.job, kept_as)
        for stage in stages:
            if STAGES.index(stage) >= STAGES.index(self.job.progress.stage):
                started = time.monotonic()
                run[stage]()
                seconds[stage] = time.monotonic() - started
                self.job.keep_json(kept_as, seconds)
                log.info("%s: %.1f s", stage, seconds[stage])
        return seconds

    def result(
        self,
        folder: Path,
        bits: float,
        errors: dict[str, float],
        measurement: Path,
        seconds: dict[str, float],
        test: SelfTest | None,
    ) -> ConvertResult:
        rounding, devices = self.bench.rounding.NAME, ", ".join(map(describe, self.devices))
        return ConvertResult(folder, bits, errors, measurement, rounding, devices, self.seconds | seconds, test)

    # ---- stages

    def go_forward(self) -> None:
        """Keep what every unquantized layer is given."""

        def step(layer: int, x: Tensor) -> Tensor:
            self.job.keep_tensors(_layer_name("forward", layer), {"states": x})
            self.tell("forward", layer + 1, self.num_layers)
            return self.bench.open(layer).advance(x, lambda part, part_input: part(part_input))

        self.job.through_layers("forward", self.num_layers, lambda: self.bench.embed(self.tokens), step)
        self.job.next_stage()

    def go_back(self) -> None:
        """Back from the loss, layer by layer, for sensitivities and, where no measurement is at hand, for options."""
        priced = self.options.measurement is None

        def step(index: int, gradient: Tensor) -> Tensor:
            layer = self.num_layers - 1 - index
            x = self.job.kept_tensors(_layer_name("forward", layer))["states"]
            gradient, sensitivities, options = go_back(self.bench, layer, x, gradient, priced)
            keep_sensitivities(self.job, layer, sensitivities)
            self.keep_options(layer, options)
            self.tell("backward", index + 1, self.num_layers)
            return gradient

        def start() -> Tensor:
            states = self.job.last_states("forward", self.num_layers)
            return loss_gradient(self.bench, states, partial(self.tell, "loss"))

        self.job.through_layers("backward", self.num_layers, start, step)
        if priced:
            self.collect_measurement()
        self.job.next_stage()
        self.job.drop("forward")

    def measure(self) -> None:
        def step(layer: int, x: Tensor) -> Tensor:
            x, measured = measure_layer(self.bench, layer, x)
            self.keep_options(layer, measured)
            self.tell("measure", layer + 1, self.num_layers)
            return x

        options = self.options
        tokens = self.calibration.sample(options.measure_rows, options.measure_length)
        self.job.through_layers("measure", self.num_layers, lambda: self.bench.embed(tokens), step)
        self.collect_measurement()
        self.job.next_stage()

    def keep_options(self, layer: int, options: list[list[MeasuredOption]]) -> None:
        pairs = zip(self.slots[2 * layer :], options, strict=False)
        self.job.keep_json(_layer_name("measure", layer), [[option_json(o, slot) for o in m] for slot, m in pairs])

    def collect_measurement(self) -> None:
        kept = [
            entry for layer in range(self.num_layers) for entry in self.job.kept_json(_layer_name("measure", layer))
        ]
        measurement = [
            [read_option(option, slot, slot.name) for option in entry]
            for slot, entry in zip(self.slots, kept, strict=True)
        ]
        write_measurement(self.measurement_file, self.source.spec, measurement)

    def quantize(self) -> None:
        chosen = self.choose(self.target)
        log.info("allocated %.4f bits per weight of %g", self.bits(chosen), self.target.bits)

        def step(layer: int, states: Tensor) -> Tensor:
            pair = [option.sets for option in chosen[2 * layer : 2 * layer + 2]]
            sensitivities = self.sensitivities(layer)
            states, errors = quantize_layer(self.bench, self.job, layer, states, pair, sensitivities)
            self.job.keep_json(_errors_name(self.job.progress.model, layer), errors)
            self.tell("quantize", layer + 1, self.num_layers)
            return states

        def start() -> Tensor:
            states = self.bench.embed(self.tokens)
            return torch.stack([states, states])

        self.job.through_layers("quantize", self.num_layers, start, step)
        self.job.next_stage()

    def quantize_head(self) -> None:
        self.tell("head", 0, 1)
        states, _ = self.job.last_states("quantize", self.num_layers)
        quantize_head(self.bench, self.job, states, self.options.head_bits)
        self.tell("head", 1, 1)
        self.job.next_stage()

    def tune(self) -> None:
        tuned = tune(self.bench, self.job, self.tokens, partial(self.tell, "tune"))
        self.job.keep_tensors(TUNED, tuned)
        self.job.next_stage()

    def write(self) -> None:
        target, shard_bytes = self.target, (self.options.shard_mb or 1 << 30) << 20
        make_folder(target.folder)
        self.copy_measurement(target.folder / self.measurement_file.name)
        record = self.calibration.record
        tuned, head_bits = self.job.kept_tensors(TUNED) if self.options.tune else {}, self.options.head_bits
        write_model(self.source, self.job, target.folder, shard_bytes, target.bits, head_bits, record, tuned)
        open_model(target.folder)
        self.tell("write", 1, 1)
        self.job.next_stage()

    def test(self) -> None:
        target = self.target
        bits = min(target.bits, self.options.head_bits)  # the head can spoil a model alone
        tell = partial(self.tell, "test")
        self.tests[self.job.progress.model] = self_test(self.bench, target.folder, bits, tell)

    # ---- what they share

    def sensitivities(self, layer: int) -> dict[str, Sensitivity]:
        return kept_sensitivities(self.job, layer, self.bench.device) if self.options.how.by_loss else {}

    @cached_property
    def bench(self) -> Workbench:
        device, *helpers = self.devices
        ropes, rounding = RopeTables(self.source.spec.max_seq_len, device), choose_rounding(device)
        backend, method = load_backend("reference"), self.options.how
        return Workbench(self.source, ropes, backend, rounding, device, method, tuple(helpers))

    @cached_property
    def calibration(self) -> Calibration:
        return read_kept_calibration(self.job)

    @property
    def tokens(self) -> Tensor:
        """[rows, length] of the passes that statistics for rounding come from."""
        return self.calibration.tokens[: self.options.rows, : self.options.length]

    @cached_property
    def slots(self) -> list[Slot]:
        return all_slots(self.source.spec)

    @property
    def num_layers(self) -> int:
        return len(self.source.spec.blocks)

    @cached_property
    def num_weights(self) -> int:
        return sum(slot.num_weights for slot in self.slots)

    @property
    def target(self) -> Target:
        """The model that is being made."""
        return self.targets[self.job.progress.model]

    def errors(self, number: int) -> dict[str, float]:
        """Of a model that is made."""
        layers = (self.job.kept_json(_errors_name(number, layer)) for layer in range(self.num_layers))
        return {name: error for layer in layers for name, error in layer.items()}

    def choose(self, target: Target) -> list[MeasuredOption]:
        """The option of each slot; the same at every run, so that it need not be kept."""
        try:
            measurement = read_measurement(self.measurement_file, self.source.spec)
        except JobError:  # which speaks of a file that the user gave
            raise corrupt(self.measurement_file) from None
        return choose(measurement, self.source.spec, target.bits)

    def bits(self, chosen: Sequence[MeasuredOption]) -> float:
        """Bits per weight of the chosen options, over the decoder's matrices."""
        return sum(option.num_bits for option in chosen) / self.num_weights

    @property
    def measurement_file(self) -> Path:
        return self.job.folder / FILE_NAME

    def save_measurement(self) -> None:
        wanted = self.options.save_measurement
        if wanted is not None:
            self.copy_measurement(wanted / self.measurement_file.name if wanted.is_dir() else wanted)

    def copy_measurement(self, target: Path) -> None:
        """With the sensitivities, where the method has any: these first, so that no measurement lacks them."""
        if self.options.how.by_loss:
            _copy(file_beside(self.measurement_file), file_beside(target))
        _copy(self.measurement_file, target)


def kept_seconds(job: Job, name: str) -> dict[str, float]:
    """What the stages of a job's earlier runs took; for information only, so damage does no harm."""
    try:
        return dict(job.kept_json(name))
    except (JobError, TypeError, ValueError):
        return {}


def _layer_name(stage: str, layer: int) -> str:
    return f"{stage}/{layer:05}"


def _errors_name(model: int, layer: int) -> str:
    return f"errors-{model}/{layer:05}"


def _copy(source: Path, target: Path) -> None:
    make_folder(target.parent)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
