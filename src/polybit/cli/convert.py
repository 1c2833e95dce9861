"""`polybit convert`: an unquantized model to an EXL2 folder."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from polybit.cli.console import note, notes, print_tables
from polybit.cli.dry_run import dry_run
from polybit.cli.flags import Flag, settings
from polybit.errors import FormatError
from polybit.format import gguf
from polybit.format.files import atomic_write_text
from polybit.quantizer.convert import convert_each
from polybit.quantizer.folders import work_folder
from polybit.quantizer.job import Job
from polybit.quantizer.options import ConvertOptions, ConvertProgress, ConvertResult, Report, check_options
from polybit.quantizer.target import targets_of
from polybit.quantizer.tested import SelfTest

UNPACKED_FROM = ".unpacked-from"  # hidden, so that it is not copied into the result

CONVERSION: Mapping[str, Flag] = {
    "head_bits": Flag("Bits of the last matrix: 2, 3, 4, 5, 6 or 8"),
    "calibration": Flag(
        "Calibration text: a .txt, .jsonl or .parquet file, a folder of them, or a dataset's id on the Hub",
        short="-c",
        default="text that the model writes, and text found on this machine",
    ),
    "rows": Flag("Rows of calibration text"),
    "length": Flag("Tokens a row"),
    "measure_rows": Flag("Rows that gptq-v2 measures on"),
    "measure_length": Flag("Tokens a row that gptq-v2 measures on"),
    "method": Flag("How to find what matters: gptq-loss asks the model's own loss, gptq-v2 is the original's way"),
    "tune": Flag("After rounding, tune norms, biases and scale maxima by gradient descent: better, and a lot slower"),
    "shard_mb": Flag("Megabytes a weight file; 0: one file"),
    "work_dir": Flag("Folder for unfinished work", default="a hidden one inside OUT, deleted at the end"),
    "measurement": Flag("Use this measurement of an earlier run instead of measuring"),
    "save_measurement": Flag("Keep the measurement in this file"),
    "measure_only": Flag("Stop after measuring"),
    "self_test": Flag("Compare the result with IN on a little text, and fail with exit code 3 if it is garbage"),
    "push_to_hub": Flag("Upload the result to this repository (OWNER/NAME) on the Hub, which is made if there is none"),
    "public": Flag("Let anybody see the repository that --push-to-hub makes; otherwise it is private"),
    "resume": Flag("Go on where an interrupted run stopped, or start over"),
    "device": Flag("One of cpu, cuda, cuda:1, mps", default="CUDA if there is one, else cpu"),
    "devices": Flag(
        "Several GPUs of one kind, as cuda:0,cuda:1, instead of --device: a layer's matrices are dealt out"
    ),
    "rope_scale": Flag("Stretch positions linearly by this factor while calibrating"),
    "rope_alpha": Flag("Stretch positions the NTK way by this alpha while calibrating"),
}


@settings(ConvertOptions, "Conversion", CONVERSION)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="Folder of an unquantized model, its id on the Hub, or a .gguf file.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; new or empty.", show_default=False)],
    options: ConvertOptions,
    bits: Annotated[
        list[float] | None,
        typer.Option(
            "--bits",
            "-b",
            help="Average bits per weight of the layers, everything that is stored for them counted. Repeat it for "
            "several models by one measurement, in folders of OUT.",
            show_default="4.0",
            rich_help_panel="Conversion",
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it would make and take: sizes, disk, memory, time."),
    ] = False,
) -> None:
    """Convert a model to EXL2. Can be interrupted; the same command goes on where it stopped."""
    each = bits or [options.bits]
    if dry:
        dry_run(source, out, options, each)
        return
    if source.lower().endswith(".gguf"):
        check_options(options)
        targets_of(out, each)
        with unpacked_gguf(Path(source).expanduser(), out, work_folder(out, options.work_dir)) as folder:
            made = run_conversion(folder, out, options, each)
    else:
        made = run_conversion(source, out, options, each)
    print_tables(map(result_table, made))


def run_conversion(
    source: str | Path, out: Path, options: ConvertOptions, bits: Sequence[float], watch: Report | None = None
) -> list[ConvertResult]:
    """Convert under a progress bar; `watch` is told of progress too."""
    try:
        with conversion_progress() as show:

            def report(progress: ConvertProgress) -> None:
                show(progress)
                if watch is not None:
                    watch(progress)

            return convert_each(source, out, options, bits, report)
    except KeyboardInterrupt:
        note("what is done is kept: run the same command again to go on")
        raise


@contextmanager
def unpacked_gguf(path: Path, out: Path, job: Path) -> Iterator[Path]:
    """The GGUF file as a model folder beside `out`, deleted at the end; kept where `job` needs it to go on."""
    folder = out.with_name(f".{out.name}.source")
    try:
        unpack_once(path, folder)
        yield folder
    except BaseException:
        if not Job.exists(job):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def unpack_once(path: Path, folder: Path) -> None:
    """Unless an earlier run did it with the same file."""
    if not path.is_file():
        raise FormatError(f"{path} is not a file; give the path of a .gguf file")
    found, mark = path.stat(), folder / UNPACKED_FROM
    wanted = f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    note(f"unpacking {path.name} to 16 bits a weight")
    gguf.export(path, folder)
    atomic_write_text(mark, wanted)


@contextmanager
def conversion_progress() -> Iterator[Report]:
    """A bar over the whole job with the time left; where there is no terminal, a note at every tenth of it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task, tenths, started = bar.add_task("starting", total=1.0), 0, time.monotonic()

        def report(progress: ConvertProgress) -> None:
            nonlocal tenths
            which = "" if progress.bits is None else f"{progress.bits:g} bpw, "
            where = f"{which}{progress.stage} {progress.done}/{progress.total}"
            bar.update(task, description=where, completed=progress.fraction)
            if bar.disable and int(progress.fraction * 10) > tenths:
                tenths = int(progress.fraction * 10)
                note(f"{where}: {progress.fraction:.0%} done after {time.monotonic() - started:.0f} s")

        yield report


def add_self_test(table: Table, test: SelfTest) -> None:
    score = test.score
    table.add_row("KL to the source", f"{test.nats:.4f} nats on held-out text, at most {test.allowed:g} pass")
    table.add_row("perplexity", f"{score.perplexity:.2f}, the source's {test.source_perplexity:.2f}")
    table.add_row("same favourite", f"{score.top1:.1%}")
    if test.sample is not None:
        table.add_row("asked" if test.sample.is_chat else "given", escape(test.sample.prompt))
        table.add_row("it says", escape(" ".join(test.sample.text.split())))


def result_table(result: ConvertResult) -> Table:
    table = Table.grid(padding=(0, 2))
    if result.errors:
        worst = max(result.errors, key=lambda name: result.errors[name])
        table.add_row("EXL2 model", str(result.folder))
        table.add_row("bits per weight", f"{result.bits:.3f}")
        table.add_row("largest error", f"{result.errors[worst]:.3f} of the output of {worst}")
    if result.self_test is not None:
        add_self_test(table, result.self_test)
    table.add_row("measurement", str(result.measurement))
    table.add_row("took", ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items()))
    return table
