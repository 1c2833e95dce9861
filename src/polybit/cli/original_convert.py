"""`convert.py` with the flags of exllamav2's script of that name: each does what it did there, or says why not."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from polybit.cli.console import note, results, show_log
from polybit.cli.convert import conversion_progress, result_table
from polybit.cli.guard import guarded
from polybit.errors import RequestError
from polybit.quantizer.convert import convert as convert_folder
from polybit.quantizer.options import ConvertOptions, ConvertProgress

WITHOUT_EFFECT = {
    "resume": "-res has no effect: an interrupted job is always resumed",
    "fast_safetensors": "-fst has no effect: weights are read lazily anyway",
    "hidden_state_offload_layers": "-hsol has no effect: states stay where they are computed",
}


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """The original's flags with the original's defaults."""
    made = Parser(prog="convert.py", description="Convert a model to EXL2 with the original's flags.")
    add = made.add_argument
    add("-i", "--in_dir", type=Path, required=True, help="folder of the unquantized model")
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
    add("-r", "--dataset_rows", type=int, default=100, help="rows, with -c (default: %(default)s)")
    add("-mr", "--measurement_rows", type=int, default=16, help="rows to measure on, with -c (default: %(default)s)")
    add("-l", "--length", type=int, default=2048, help="tokens a row, with -c (default: %(default)s)")
    add("-ml", "--measurement_length", type=int, default=2048, help="the same for measuring (default: %(default)s)")
    add("-so", "--status_output", action="store_true", help="also print [STATUS]{...}[/STATUS] lines")
    add("-hsol", "--hidden_state_offload_layers", type=int, default=0, help="no effect")
    add("-fst", "--fast_safetensors", action="store_true", help="no effect")
    return made


def options_of(given: argparse.Namespace) -> ConvertOptions:
    """The same job in polybit's terms."""
    if given.output_measurement is not None and given.compile_full is not None:
        raise RequestError("-om stops after measuring, so there is no model for -cf; give one of the two")
    options = ConvertOptions(
        bits=given.bits,
        head_bits=given.head_bits,
        shard_mb=given.shard_size,
        work_dir=None if given.compile_full is None else given.out_dir,
        measurement=given.measurement,
        save_measurement=given.output_measurement,
        measure_only=given.output_measurement is not None,
        resume=not given.no_resume,
        rope_scale=given.rope_scale,
        rope_alpha=given.rope_alpha,
    )
    return options if given.cal_dataset is None else with_dataset(options, given)


def with_dataset(options: ConvertOptions, given: argparse.Namespace) -> ConvertOptions:
    """Row counts and lengths hold only with -c, as in the original; polybit's own text has polybit's defaults."""
    return replace(
        options,
        calibration=given.cal_dataset,
        rows=given.dataset_rows,
        length=given.length,
        measure_rows=given.measurement_rows,
        measure_length=given.measurement_length,
    )


def print_status(progress: ConvertProgress) -> None:
    """The lines by which other programs follow the original's script; completion is of the whole job."""
    status = json.dumps({"stage": progress.stage, "completion": round(progress.fraction, 4)})
    results.print(f"[STATUS]{status}[/STATUS]", markup=False)


def run(arguments: Sequence[str]) -> None:
    given = parser().parse_args(arguments)
    options = options_of(given)
    for name, remark in WITHOUT_EFFECT.items():
        if getattr(given, name):
            note(remark)
    with conversion_progress() as show:

        def report(progress: ConvertProgress) -> None:
            show(progress)
            if given.status_output:
                print_status(progress)

        result = convert_folder(given.in_dir, given.compile_full or given.out_dir, options, report)
    results.print(result_table(result))


def main() -> None:
    """The script."""
    show_log(logging.INFO)
    sys.exit(guarded(lambda: run(sys.argv[1:])))
