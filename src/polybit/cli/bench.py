"""`polybit bench`: how fast a model is on this machine, beside what the machine could do."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from polybit.bench.first_use import FirstUse, measure_first_use
from polybit.bench.measure import Wanted, measure
from polybit.bench.report import Report, Row, Vram
from polybit.bench.shapes import SHAPES
from polybit.bench.subject import Request, Subject, open_subject
from polybit.cli.console import note, progress, results
from polybit.cli.shared_options import loading
from polybit.errors import RequestError
from polybit.format.files import atomic_write_json
from polybit.format.hub import local_folder
from polybit.model.options import LoadOptions


@loading
def bench(
    options: LoadOptions,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder of a model, or its id on the Hub.", show_default=False),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            "--synthetic",
            help="In place of MODEL: random weights of a shape at an average number of bits, as llama-8b@4.0. Shapes: "
            f"{', '.join(SHAPES)}, or the path of a config.json.",
        ),
    ] = None,
    head_bits: Annotated[int, typer.Option("--head-bits", help="Bits of a synthetic model's head.")] = 6,
    seed: Annotated[int, typer.Option("--seed", help="Of a synthetic model's weights.")] = 0,
    batch: Annotated[
        str, typer.Option("--batch", help="Sequences that decode together; several numbers give several rows.")
    ] = "1,2,4,8,16,32,64",
    context: Annotated[
        str, typer.Option("--context", help="Tokens that each sequence has before it when decoding.")
    ] = "128,2048",
    prefill: Annotated[str, typer.Option("--prefill", help="Tokens of a prompt.")] = "512,2048",
    first_use: Annotated[
        bool, typer.Option("--first-use", help="Also time fresh processes, without and with their compiled kernels.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure tokens a second, loading and memory, after checking that the results are right.

    Beside each speed stands its share of what the device could do, which is measured first.
    """
    wanted = Wanted(numbers("--batch", batch), numbers("--context", context), numbers("--prefill", prefill))
    request = request_of(model, synthetic, head_bits, seed, options)
    subject = open_subject(request)
    started = time_first_use(request) if first_use else None
    report = run(subject, wanted, started)
    print_report(report)
    if json_file is not None:
        atomic_write_json(json_file, report.to_json())


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4); nothing -> ()."""
    try:
        values = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        values = (0,)
    if any(value < 1 for value in values):
        raise RequestError(f"{option} is {text!r}, expected whole numbers from 1 up with commas between, as 1,2,4")
    return tuple(dict.fromkeys(values))


def request_of(model: str | None, synthetic: str | None, head_bits: int, seed: int, options: LoadOptions) -> Request:
    if (model is None) == (synthetic is None):
        raise RequestError("give either MODEL or --synthetic, as in: polybit bench --synthetic llama-8b@4.0")
    folder = None if model is None else str(local_folder(model).absolute())
    return Request(folder, synthetic, head_bits, seed, options)


def time_first_use(request: Request) -> FirstUse:
    note("timing fresh processes")
    return measure_first_use(request)


def run(subject: Subject, wanted: Wanted, first_use: FirstUse | None) -> Report:
    with progress(f"loading {subject.name}") as advance:
        return measure(subject, wanted, first_use, advance)


def print_report(report: Report) -> None:
    results.print(machine_table(report))
    if report.decode:
        results.print()
        results.print(rows_table(report.decode, "decode", "of the read bandwidth"))
    if report.prefill:
        results.print()
        results.print(rows_table(report.prefill, "prefill", "of the matmul rate"))


def machine_table(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("model", f"{report.model}, {report.bpw:.3f} bits a weight, backend {report.backend}")
    table.add_row("device", report.device)
    table.add_row("read bandwidth", f"{report.read_gb_s:,.1f} GB/s")
    table.add_row("matmul rate", f"{report.matmul_tflops:,.2f} TFLOP/s")
    table.add_row("load", f"{report.load_s:.2f} s")
    if report.vram is not None:
        table.add_row("memory", memory_line(report.vram))
    if report.first_use is not None:
        started = report.first_use
        table.add_row("first token", f"{started.empty_cache:.1f} s, then {started.full_cache:.1f} s")
    return table


def memory_line(vram: Vram) -> str:
    sizes = (vram.used, vram.reserved, vram.allocated, vram.weights)
    used, reserved, allocated, weights = (size / 1e9 for size in sizes)
    return (
        f"{used:.2f} GB of the device with {vram.cache_tokens} tokens cached; "
        f"torch reserved {reserved:.2f}, filled {allocated:.2f}, with the weights {weights:.2f}"
    )


def rows_table(rows: tuple[Row, ...], title: str, share: str) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for head in ("batch", "tokens", "tokens/s", "ms", share):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(str(row.batch), f"{row.context:,}", speed(row.tok_per_s), f"{row.ms:,.2f}", f"{row.fraction:.1%}")
    return table


def speed(value: float) -> str:
    """Three figures or more."""
    decimals = next((digits for least, digits in ((100, 0), (10, 1), (1, 2)) if value >= least), 3)
    return f"{value:,.{decimals}f}"
