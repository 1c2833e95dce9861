"""`convert.py` with the flags of exllamav2's script of that name: each does what it did there, or says why not."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from polybit.cli.console import note, print_tables, results, show_log
from polybit.cli.convert import result_table, run_conversion
from polybit.cli.guard import guarded
from polybit.errors import RequestError
from polybit.quantizer.begun import Begun, read_begun
from polybit.quantizer.folders import WORK_FOLDER
from polybit.quantizer.job import Job
from polybit.quantizer.options import ConvertOptions, ConvertProgress

WITHOUT_EFFECT = {
    "resume": "-res has no effect: an interrupted job is always resumed",
    "fast_safetensors": "-fst has no effect: weights are read lazily anyway",
    "hidden_state_offload_layers": "-hsol has no effect: where calibration states lie is not for options to say",
}
WITHOUT_EFFECT_ON_FOUND_TEXT = {
    "dataset_rows": "-r has no effect without -c, as in the original",
    "measurement_rows": "-mr has no effect without -c, as in the original",
}
FIELDS = {
    "dataset_rows": "rows",
    "measurement_rows": "measure_rows",
    "length": "length",
    "measurement_length": "measure_length",
}
DATASET_DEFAULTS = {"rows": 100, "measure_rows": 16, "length": 2048, "measure_length": 2048}  # the original's


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """The original's flags with the original's defaults."""
    made = Parser(prog="convert.py", description="Convert a model to EXL2 with the original's flags.")
    add = made.add_argument
    add("-i", "--in_dir", type=Path, help="folder of the unquantized model; not needed to go on with a job in -o")
    add("-o", "--out_dir", type=Path, required=True, help="working folder; without -cf also the result's")
    add("-cf", "--compile_full", type=Path, help="folder of the finished model")
    add("-nr", "--no_resume", action="store_true", help="delete what an unfinished job left and start over")
    add("-res", "--resume", action="store_true", help="no effect: resuming is automatic")
    add("-c", "--cal_dataset", help="calibration text (default: written by the model, and found on this machine)")
    add("-b", "--bits", type=float, default=4.125, help="average bits per weight (default: %(default)s)")
    add("-hb", "--head_bits", type=int, default=6, help="bits of the last matrix (default: %(default)s)")
    add("-ss", "--shard_size", type=int, default=8192, help="megabytes a file, 0: one file (default: %(default)s)")
    add("-rs", "--rope_scale", type=float, help="linear position scale while calibrating")
    add("-ra", "--rope_alpha", type=float, help="NTK alpha while calibrating")
    add(
        "-om",
        "--output_measurement",
        type=Path,
        help="stop after measuring; save the measurement as this file or in this folder",
    )
    add("-m", "--measurement", type=Path, help="use this measurement instead of measuring")
    add("-r", "--dataset_rows", type=int, help="rows, with -c (default: 100)")
    add("-mr", "--measurement_rows", type=int, help="rows to measure on, with -c (default: 16)")
    add("-l", "--length", type=int, help="tokens a row (default: 2048 with -c, else 512)")
    add("-ml", "--measurement_length", type=int, help="the same for measuring (default: 2048 with -c, else 512)")
    add("-so", "--status_output", action="store_true", help="also print [STATUS]{...}[/STATUS] lines")
    add("-hsol", "--hidden_state_offload_layers", type=int, default=0, help="no effect")
    add("-dv", "--devices", help="GPUs of one kind that share the work, as cuda:0,cuda:1 (not in the original)")
    add("-fst", "--fast_safetensors", action="store_true", help="no effect")
    return made


def options_of(given: argparse.Namespace) -> ConvertOptions:
    """The same job in polybit's terms."""
    if given.output_measurement is not None and given.compile_full is not None:
        raise RequestError("-om stops after measuring, so there is no model for -cf; give one of the two")
    if given.output_measurement is not None and given.measurement is not None:
        raise RequestError("-om makes a measurement, and -m brings one; give one of the two")
    options = ConvertOptions(
        bits=given.bits,
        head_bits=given.head_bits,
        calibration=given.cal_dataset,
        shard_mb=given.shard_size,
        work_dir=None if given.compile_full is None else given.out_dir,
        measurement=given.measurement,
        save_measurement=given.output_measurement,
        measure_only=given.output_measurement is not None,
        resume=not given.no_resume,
        rope_scale=given.rope_scale,
        rope_alpha=given.rope_alpha,
        devices=given.devices,
    )
    return replace(options, **rows_and_lengths(given))


def rows_and_lengths(given: argparse.Namespace) -> dict[str, Any]:
    """With -c what is given, else the original's defaults. Text that polybit finds has polybit's, but for lengths."""
    flags = {field: getattr(given, flag) for flag, field in FIELDS.items()}
    if given.cal_dataset is not None:
        return {field: DATASET_DEFAULTS[field] if value is None else value for field, value in flags.items()}
    return {field: value for field, value in flags.items() if value is not None and "rows" not in field}


def remarks(given: argparse.Namespace) -> Iterator[str]:
    """On the flags that do nothing here."""
    silent = WITHOUT_EFFECT if given.cal_dataset is not None else WITHOUT_EFFECT | WITHOUT_EFFECT_ON_FOUND_TEXT
    return (remark for name, remark in silent.items() if getattr(given, name))


def job_of(given: argparse.Namespace) -> Begun:
    """What the command line says, or without -i what the unfinished job in -o was begun with."""
    if given.in_dir is not None:
        options = options_of(given)
        return Begun(given.in_dir, given.compile_full or given.out_dir, options, [options.bits])
    found = [folder for folder in (given.out_dir, given.out_dir / WORK_FOLDER) if Job.exists(folder)]
    if given.no_resume or not found:
        reason = "-nr starts over" if given.no_resume else f"{given.out_dir} holds no unfinished job to go on with"
        raise RequestError(f"-i is missing, and {reason}; give the folder of the unquantized model")
    note(f"going on in {given.out_dir} as the job was begun, whatever else the command line says")
    return read_begun(found[0])


def print_status(progress: ConvertProgress) -> None:
    """The lines by which other programs follow the original's script; completion is of the whole job."""
    status = json.dumps({"stage": progress.stage, "completion": round(progress.fraction, 4)})
    results.print(f"[STATUS]{status}[/STATUS]", markup=False)


def run(arguments: Sequence[str]) -> None:
    given = parser().parse_args(arguments)
    job = job_of(given)
    for remark in remarks(given):
        note(remark)
    watch = print_status if given.status_output else None
    print_tables(map(result_table, run_conversion(job.source, job.out, job.options, job.bits, watch)))


def main() -> None:
    """The script."""
    show_log(logging.INFO)
    sys.exit(guarded(lambda: run(sys.argv[1:])))
