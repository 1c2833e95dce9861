"""Before a conversion starts: what would make it fail late is refused now, and the job's folder is set up or found."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from polybit.errors import FormatError, OutOfMemory, UnsupportedModel
from polybit.format.exl2 import storage_bits
from polybit.model.load import load
from polybit.model.source import ModelSource
from polybit.quantizer.allocate import Choice, budget_of
from polybit.quantizer.calibration import Calibration, Shape, Write, fingerprint, read_calibration
from polybit.quantizer.candidates import HEAD_SETS
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
from polybit.quantizer.measurement import Measurement, read_measurement, write_measurement
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.own_text import write_text
from polybit.quantizer.pricing import extremes
from polybit.quantizer.progress import Advance
from polybit.quantizer.slots import slots_of
from polybit.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SAMPLES, SAMPLE_BYTES = 16, 1 << 16  # of each weight file, to know it again
TOKENS, RECORD = "tokens", "calibration"  # names of kept files

# Options that change what a job computes; the others may differ when it is resumed.
IDENTITY = (
    *("bits", "head_bits", "method", "calibration", "rows", "length", "measure_rows", "measure_length"),
    *("measurement", "rope_scale", "rope_alpha"),
)


def check_source(source: ModelSource, options: ConvertOptions) -> None:
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
    if options.measurement is None:
        slots = [slot for block in source.spec.blocks for slot in slots_of(block)]
        costs = (extremes(s) if options.how.by_loss else [s.num_bits(option) for option in s.options] for s in slots)
        budget_of(
            [[Choice(cost, 0.0) for cost in found] for found in costs],
            options.bits,
            sum(slot.num_weights for slot in slots),
        )


@contextmanager
def open_job(source: ModelSource, out: Path, options: ConvertOptions, advance: Advance) -> Iterator[Job]:
    """The job of an earlier run, or a new one with its calibration tokens kept; `advance` follows their making.

    Its folder is this run's alone until the context ends.
    """
    work = work_folder(out, options.work_dir)
    check_apart(source.folder, out, work)
    identity = dict(_identity(source, options))
    if Job.exists(work) and options.resume:
        Job.check(work)  # before anything is written there: it may be another program's
        with held(work):
            job = Job.resume(work, identity)
            if job.progress.stage != STAGES[-1]:
                check_no_model(out)
            yield job
    else:
        delete_leftovers(work)
        check_empty(work, out)
        check_room(_needs(source, work, out, options))
        measurement = None if options.measurement is None else read_measurement(options.measurement, source.spec)
        calibration = _calibrate(source, options, advance)
        with held(work):
            check_empty(work, out)  # again: another run may have come first
            yield _new_job(source, Job(work, identity), options, calibration, measurement)


def _new_job(
    source: ModelSource, job: Job, options: ConvertOptions, calibration: Calibration, measurement: Measurement | None
) -> Job:
    job.keep_tensors(TOKENS, {"tokens": calibration.tokens})
    job.keep_json(RECORD, calibration.record)
    if measurement is not None:
        write_measurement(job.folder / "measurement.json", source.spec, measurement)
    job.save(Progress(planned_stages(options)[0]))
    return job


def told_stages(options: ConvertOptions) -> tuple[str, ...]:
    """What progress is told of: the stages of the job, and the steps between them that take their time."""
    calibrating = ("calibrate",) if options.calibration is None else ()
    job = (("loss", stage) if stage == "backward" else (stage,) for stage in planned_stages(options))
    return calibrating + tuple(chain.from_iterable(job))


def planned_stages(options: ConvertOptions) -> tuple[str, ...]:
    """The stages of a run that nothing interrupts. A method by loss wants gradients, whoever priced the options."""
    if options.how.by_loss:
        judging: tuple[str, ...] = ("forward", "backward")
    else:
        judging = ("measure",) if options.measurement is None or options.measure_only else ()
    return judging if options.measure_only else (*judging, "quantize", "head", "write")


def read_kept_calibration(job: Job) -> Calibration:
    """What open_job kept. JobError where either file is damaged."""
    tokens, record = job.kept_tensors(TOKENS).get("tokens"), job.kept_json(RECORD)
    if tokens is None:
        raise corrupt(job.folder / f"{TOKENS}.safetensors")
    if not isinstance(record, dict) or record.get("sha256") != fingerprint(tokens):
        raise corrupt(job.folder / f"{RECORD}.json")
    return Calibration(tokens, record)


def _identity(source: ModelSource, options: ConvertOptions) -> Iterator[tuple[str, Any]]:
    """A fingerprint of the model (its config, and size and samples of each weight file), and the options that count."""
    digest = hashlib.sha256((source.folder / "config.json").read_bytes())
    for path in sorted(source.folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        for sample in _samples(path):
            digest.update(sample)
    yield "model", digest.hexdigest()
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


def _needs(source: ModelSource, work: Path, out: Path, options: ConvertOptions) -> list[tuple[Path, float]]:
    """Folders that are written to, with their bytes at the fullest. A quantized tensor lies in both for a moment."""
    model, head = source.spec, source.spec.head.linear
    weights = sum(linear.in_features * linear.padded_out_features for linear in model.linears) * options.bits / 8
    head_bytes = (
        storage_bits(HEAD_SETS[options.head_bits].layout(head.in_features), head.padded_out_features, False) / 8
    )
    embedding = 2 * model.embedding.num_rows * model.embedding.width
    copies = len(model.blocks) + 2 if options.how.by_loss else 2
    tokens = max(options.rows * options.length, options.measure_rows * options.measure_length)
    states = 4 * copies * tokens * model.hidden_size
    quantized = weights + head_bytes
    needs = [(work, quantized + states), (out, 0 if options.measure_only else quantized + embedding)]
    saved = options.save_measurement
    return needs if saved is None else [*needs, (saved.parent, 0)]


def _writer(source: ModelSource, options: ConvertOptions, bos: int | None, advance: Advance) -> Write | None:
    """What writes text with the whole model, or None where it does not fit into memory whole."""
    try:
        model = load(replace(source, options=replace(source.options, device=options.device)))
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
