"""Before a conversion starts: what would make it fail late is refused now, and the job's folder is set up or found."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polybit import spec
from polybit.errors import FormatError, OutOfMemory, UnsupportedModel
from polybit.model.device import choose_device, choose_devices
from polybit.model.load import load
from polybit.model.source import ModelSource
from polybit.quantizer.allocate import Choice, budget_of
from polybit.quantizer.begun import Begun, keep_begun
from polybit.quantizer.calibration import Calibration, Shape, Write, fingerprint, read_calibration
from polybit.quantizer.folders import (
    check_apart,
    check_empty,
    check_no_model,
    check_room,
    delete_leftovers,
    held,
    work_folder,
)
from polybit.quantizer.job import STAGES, Job, Progress
from polybit.quantizer.kept import corrupt
from polybit.quantizer.measurement import FILE_NAME, Measurement, read_measurement, write_measurement
from polybit.quantizer.needs import disk_needs
from polybit.quantizer.options import ConvertOptions, Report
from polybit.quantizer.own_text import write_text
from polybit.quantizer.pricing import extremes
from polybit.quantizer.progress import Advance, Teller
from polybit.quantizer.reuse import about, keep_reused, read_sensitivities
from polybit.quantizer.slots import all_slots
from polybit.quantizer.target import Target
from polybit.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SAMPLES, SAMPLE_BYTES = 16, 1 << 16  # of each weight file, to know it again
TOKENS, RECORD = "tokens", "calibration"  # names of kept files

# Options that change what a job computes; the others may differ when it is resumed.
IDENTITY = (
    *("head_bits", "method", "tune", "calibration", "rows", "length", "measure_rows", "measure_length"),
    *("measurement", "rope_scale", "rope_alpha"),
)


def devices_of(options: ConvertOptions) -> tuple[torch.device, ...]:
    """That compute, the one that holds a layer first. KernelError or ConfigError: not there, or not to be mixed."""
    return (choose_device(options.device),) if options.devices is None else choose_devices(options.devices)


def check_source(source: ModelSource, options: ConvertOptions, targets: Sequence[Target]) -> None:
    """FormatError, UnsupportedModel or JobError for a model that cannot be converted as asked."""
    for linear in (*source.spec.linears, source.spec.head.linear):
        kind = source.checkpoint.kind(linear.key)
        if kind in ("exl2", "gptq"):
            raise FormatError(
                f"{linear.key} in {source.folder} is quantized already ({kind}), expected plain weights; "
                "convert the original model instead"
            )
        if linear.in_features % 32:
            raise UnsupportedModel(
                f"{linear.key} has {linear.in_features} input features, but EXL2 needs a multiple of 32; "
                "this model cannot be converted"
            )
    if options.measurement is None:  # one that is given was read when the job began
        check_reach(source.spec, options, targets)


def check_reach(model: spec.Model, options: ConvertOptions, targets: Sequence[Target]) -> None:
    """JobError where no choice among the options, or among those of a measurement that is given, comes to the bits."""
    slots = all_slots(model)
    if options.measurement is not None:
        costs = [[option.num_bits for option in entry] for entry in read_measurement(options.measurement, model)]
    elif options.how.by_loss:
        costs = [extremes(slot) for slot in slots]
    else:
        costs = [[slot.num_bits(option) for option in slot.options] for slot in slots]
    choices = [[Choice(cost, 0.0) for cost in found] for found in costs]
    for target in targets:
        budget_of(choices, target.bits, sum(slot.num_weights for slot in slots))


@contextmanager
def open_job(
    source: ModelSource, out: Path, options: ConvertOptions, targets: Sequence[Target], advance: Advance
) -> Iterator[Job]:
    """The job of an earlier run, or a new one with its calibration tokens kept; `advance` follows their making.

    Its folder is this run's alone until the context ends.
    """
    work = work_folder(out, options.work_dir)
    check_apart(source.folder, out, work)
    identity = dict(_identity(source, options, targets))
    if Job.exists(work) and options.resume:
        Job.check(work)  # before anything is written there: it may be another program's
        with held(work):
            job = Job.resume(work, identity)
            for target in targets[job.progress.model + _writes(job, options) :]:
                check_no_model(target.folder)
            yield job
    else:
        delete_leftovers(work)
        check_empty(work, out)
        check_room(rooms(source.spec, out, options, targets))
        measurement = None
        if options.measurement is not None:
            check_reach(source.spec, options, targets)
            measurement = read_measurement(options.measurement, source.spec)
        calibration = _calibrate(source, options, advance)
        reused = None
        if options.measurement is not None and options.how.by_loss:
            reused = read_sensitivities(options.measurement, about(identity, options, calibration))
        with held(work):
            check_empty(work, out)  # again: another run may have come first
            job = Job(work, identity)
            keep_begun(job, Begun(source.folder, out, options, [target.bits for target in targets]))
            yield _new_job(source, job, options, calibration, measurement, reused)


def _new_job(
    source: ModelSource,
    job: Job,
    options: ConvertOptions,
    calibration: Calibration,
    measurement: Measurement | None,
    reused: Mapping[str, Tensor] | None,
) -> Job:
    job.keep_tensors(TOKENS, {"tokens": calibration.tokens})
    job.keep_json(RECORD, calibration.record)
    if measurement is not None:
        write_measurement(job.folder / FILE_NAME, source.spec, measurement)
    stages = judging_stages(options) + making_stages(options)
    if reused is not None:
        keep_reused(job, source.spec, reused)
        stages = making_stages(options)
    job.save(Progress(stages[0]))
    return job


def _writes(job: Job, options: ConvertOptions) -> bool:
    """Whether the job may have begun to write its model: the stage behind the last one that it has to finish first."""
    return STAGES.index(job.progress.stage) > STAGES.index("tune" if options.tune else "head")


def teller(options: ConvertOptions, targets: Sequence[Target], report: Report) -> Teller:
    """Of the stages of the job, and of the steps between them that take their time."""
    bits = tuple(target.bits for target in targets)
    return Teller(told_judging(options), making_stages(options), report, bits)


def told_judging(options: ConvertOptions) -> tuple[str, ...]:
    """The stages of judging, with the steps between them that take their time."""
    calibrating = ("calibrate",) if options.calibration is None else ()
    stages = (("loss", stage) if stage == "backward" else (stage,) for stage in judging_stages(options))
    return (*calibrating, *chain.from_iterable(stages))


def judging_stages(options: ConvertOptions) -> tuple[str, ...]:
    """What all models of a conversion share. A method by loss wants gradients, whoever priced the options; a job that
    finds them beside a measurement begins behind these stages."""
    if options.how.by_loss:
        return "forward", "backward"
    return ("measure",) if options.measurement is None or options.measure_only else ()


def making_stages(options: ConvertOptions) -> tuple[str, ...]:
    """What every model of a conversion takes."""
    if options.measure_only:
        return ()
    tuning, testing = ("tune",) if options.tune else (), ("test",) if options.self_test else ()
    return ("quantize", "head", *tuning, "write", *testing)


def read_kept_calibration(job: Job) -> Calibration:
    """What open_job kept. JobError where either file is damaged."""
    tokens, record = job.kept_tensors(TOKENS).get("tokens"), job.kept_json(RECORD)
    if tokens is None:
        raise corrupt(job.folder / f"{TOKENS}.safetensors")
    if not isinstance(record, dict) or record.get("sha256") != fingerprint(tokens):
        raise corrupt(job.folder / f"{RECORD}.json")
    return Calibration(tokens, record)


def _identity(source: ModelSource, options: ConvertOptions, targets: Sequence[Target]) -> Iterator[tuple[str, Any]]:
    """A fingerprint of the model (its config, and size and samples of each weight file), and the options that count."""
    digest = hashlib.sha256((source.folder / "config.json").read_bytes())
    for path in sorted(source.folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        for sample in _samples(path):
            digest.update(sample)
    yield "model", digest.hexdigest()
    bits = [target.bits for target in targets]
    yield "bits", bits[0] if len(bits) == 1 else bits
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    for name in IDENTITY:
        yield name, str(values[name]) if isinstance(values[name], Path) else values[name]


def _samples(path: Path) -> Iterator[bytes]:
    """Spread evenly, from the file's first byte to its last: models trained from one another differ in most tensors."""
    room = max(0, path.stat().st_size - SAMPLE_BYTES)
    with path.open("rb") as file:
        for index in range(SAMPLES):
            file.seek(room * index // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)


def rooms(model: spec.Model, out: Path, options: ConvertOptions, targets: Sequence[Target]) -> list[tuple[Path, float]]:
    """Folders that are written to, with their bytes at the fullest. A quantized tensor lies in both for a moment."""
    needs, saved = disk_needs(model, options, targets), options.save_measurement
    found = [(work_folder(out, options.work_dir), float(needs.work)), (out, float(sum(needs.results)))]
    return found if saved is None else [*found, (saved.parent, 0.0)]


def _writer(source: ModelSource, options: ConvertOptions, bos: int | None, advance: Advance) -> Write | None:
    """What writes text with the whole model, or None where it does not fit into memory whole."""
    try:
        model = load(replace(source, options=replace(source.options, device=options.first_device)))
    except OutOfMemory as error:
        log.warning("calibration goes without text of the model's own: %s", error)
        return None
    return lambda starts, length: write_text(model, starts, length, bos, advance)


def _calibrate(source: ModelSource, options: ConvertOptions, advance: Advance) -> Calibration:
    """Tokens for both passes, no longer than the model's context."""
    model, tokenizer = source.spec, Tokenizer.open(source.folder)
    starts_with_bos = model.needs_bos or tokenizer.adds_bos
    shape = Shape(
        rows=max(options.rows, options.measure_rows),
        length=min(max(options.length, options.measure_length), model.max_seq_len),
        vocab_size=model.embedding.num_rows,
        bos=tokenizer.bos_id if starts_with_bos else None,
    )
    write = None
    if options.calibration is None:
        advance(0, 1)
        write = _writer(source, options, shape.bos, advance)
    found = read_calibration(
        options.calibration, shape, lambda text: tokenizer.encode(text, parse_special=False), write
    )
    used = {
        "rows": options.rows,
        "length": min(options.length, shape.length),
        "measure_rows": options.measure_rows,
        "measure_length": min(options.measure_length, shape.length),
    }
    return Calibration(found.tokens, found.record | used)
