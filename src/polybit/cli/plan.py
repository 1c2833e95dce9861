"""`polybit plan`: how many bits per weight fit a graphics card beside a context, before anything is converted."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from polybit.amounts import gibibytes, gigabytes
from polybit.bench.shapes import SHAPES
from polybit.cli.console import print_json, print_tables
from polybit.cli.description import read_description
from polybit.errors import RequestError
from polybit.kernels.pages import read_bits
from polybit.model.machine import imagined_machine, this_machine
from polybit.model.options import LoadOptions
from polybit.quantizer.needs import result_bytes
from polybit.quantizer.prospect import Prospect, contexts_up_to

BPWS = (8.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.75, 2.5, 2.25)
COUNT = re.compile(r"(\d+)(k?)", re.IGNORECASE)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a model, its id on the Hub (whose weights are not fetched), a .gguf file, the path of a "
            f"config.json, or a shape: {', '.join(SHAPES)}.",
            show_default=False,
        ),
    ],
    vram: Annotated[
        str | None,
        typer.Option(
            "--vram",
            "--gpu-split",
            help="GiB of a graphics card, or of several as 10,22; they need not be here.",
            show_default="what is free on this machine",
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            "-c",
            help="Tokens of prompt and answer, as 16384 or 16k; several with commas between.",
            show_default="4k, doubled up to what the model reaches",
        ),
    ] = None,
    bits: Annotated[
        list[float] | None,
        typer.Option(
            "--bits", "-b", help="Bits per weight, a row for each.", show_default=", ".join(f"{b:g}" for b in BPWS)
        ),
    ] = None,
    head_bits: Annotated[int, typer.Option("--head-bits", help="Bits of the last matrix.")] = 6,
    cache: Annotated[
        str, typer.Option("--cache", help="Keys and values: fp16, q8, q6, q4, or bits of both, as k8v4.")
    ] = "fp16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which bits per weight fit a graphics card, and how long a context beside them.

    Nothing is loaded, and nothing needs to be converted: polybit plan llama-8b --vram 24 --context 16k.
    """
    machine = this_machine(LoadOptions()) if vram is None else imagined_machine(vram)
    prospect = Prospect(read_description(model), machine, read_bits(cache), head_bits)
    longest = prospect.model.max_seq_len
    contexts = contexts_up_to(longest) if context is None else token_counts(context, longest)
    report = describe_prospect(prospect, choose_rows(prospect, bits), contexts)
    if as_json:
        print_json(report)
    else:
        print_tables([fits_table(report), answer_table(report)])


def token_counts(text: str, longest: int) -> tuple[int, ...]:
    """`4096,16k` -> (4096, 16384), from shortest to longest. RequestError: no such numbers, or more than `longest`."""
    found = [COUNT.fullmatch(part.strip()) for part in text.split(",")]
    counts = sorted({int(match[1]) << 10 * bool(match[2]) for match in found if match is not None})
    if None in found or 0 in counts:
        raise RequestError(f"--context is {text!r:.60}, expected tokens with commas between, as 4096 or 4k,16k")
    if counts[-1] > longest:
        raise RequestError(
            f"--context asks for {counts[-1]:,} tokens, but the model reaches {longest:,}; ask for fewer"
        )
    return tuple(counts)


def choose_rows(prospect: Prospect, bits: Sequence[float] | None) -> Sequence[float]:
    """Those that are asked for, else those of BPWS that the model reaches. RequestError: one that it does not."""
    least, most = prospect.reach
    beyond = [number for number in bits or () if not least <= number <= most]
    if beyond:
        raise RequestError(f"--bits is {beyond[0]:g}, but a conversion of this model reaches {least:.2f} to {most:.2f}")
    return bits or [number for number in BPWS if least <= number <= most]


def describe_prospect(prospect: Prospect, bits: Sequence[float], contexts: Sequence[int]) -> dict[str, Any]:
    """Everything that the command says, as plain data; sizes in bytes. null where something does not fit."""
    rows = []
    for number in bits:
        longest = prospect.longest(number)
        totals = {str(tokens): prospect.total(number, tokens) if tokens <= longest else None for tokens in contexts}
        stored = result_bytes(prospect.model, number, prospect.head_bits)
        rows.append({"bits": number, "file_bytes": stored, "total_bytes": totals, "longest_context": longest})
    return {
        "machine": [{"device": str(b.device), "free_bytes": b.free} for b in prospect.machine.budgets],
        "rows": rows,
        "most_bits": {str(tokens): prospect.most_bits(tokens) for tokens in contexts},
    }


def fits_table(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("bits")
    table.add_column("files", justify="right")
    for tokens in report["most_bits"]:
        table.add_column(f"{int(tokens):,} tokens", justify="right")
    table.add_column("longest context", justify="right")
    for row in report["rows"]:
        totals = ("—" if total is None else gibibytes(total) for total in row["total_bytes"].values())
        longest = f"{row['longest_context']:,}" if row["longest_context"] else "—"
        table.add_row(f"{row['bits']:g}", gigabytes(row["file_bytes"]), *totals, longest)
    return table


def answer_table(report: dict[str, Any]) -> Table:
    """What `polybit convert -b` may be given for each context."""
    table = Table.grid(padding=(0, 2))
    for tokens, bits in report["most_bits"].items():
        answer = "does not fit whole at any bits" if bits is None else f"up to {bits:.2f} bits per weight"
        table.add_row(f"{int(tokens):,} tokens", answer)
    return table
