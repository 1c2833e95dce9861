"""`polybit inspect`: where a model's bits went, and what it needs in memory."""

from typing import Annotated, Any

import typer
from rich.table import Table

from polybit.amounts import gigabytes
from polybit.cli.console import print_json, print_tables
from polybit.cli.memory import describe_memory, describe_plan, plan_for, plan_tables
from polybit.cli.shared_options import CacheTokens, ModelName, loading
from polybit.model.options import LoadOptions
from polybit.model.sizes import bits_per_weight, file_bytes, head_size, layer_sizes
from polybit.model.source import ModelSource, open_model

BAR_WIDTH = 32
BITS_AT_FULL_BAR = 8.0


@loading
def inspect(
    model: ModelName,
    options: LoadOptions,
    cache_tokens: CacheTokens = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show only the memory plan: what goes where.")] = False,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            help="Folder or Hub id of a smaller model that is to guess tokens: the plan makes room for it too.",
            show_default=False,
        ),
    ] = None,
    matrices: Annotated[bool, typer.Option("--matrices", help="List every matrix, not only layers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show bits per weight of every layer, sizes, and the plan of memory that loading follows.

    --gpu-split with sizes plans for cards that need not be here: --plan --gpu-split 24.
    """
    source = open_model(model, options)
    if plan:
        report = describe_plan(source, plan_for(source, cache_tokens, draft))
    else:
        report = describe_model(source, cache_tokens, draft)
    if as_json:
        print_json(report)
    else:
        print_tables(plan_tables(report) if plan else report_tables(report, matrices))


def describe_model(source: ModelSource, cache_tokens: int | None, draft: str | None = None) -> dict[str, Any]:
    """Everything that the command says, as plain data; sizes in bytes."""
    layers, head = layer_sizes(source), head_size(source)
    return {
        "folder": str(source.folder),
        "architecture": source.spec.architecture,
        "num_layers": len(layers),
        "hidden_size": source.spec.hidden_size,
        "vocabulary": source.spec.embedding.num_rows,
        "max_seq_len": source.spec.max_seq_len,
        "file_bytes": file_bytes(source),
        "decoder_weights": sum(size.num_weights for layer in layers for size in layer),
        "decoder_bpw": bits_per_weight(size for layer in layers for size in layer),
        "head_bpw": None if head is None else head.bpw,
        "layers": [
            {
                "attention_bpw": bits_per_weight(layer[: len(block.attn.linears)]),
                "mlp_bpw": bits_per_weight(layer[len(block.attn.linears) :]),
                "bpw": bits_per_weight(layer),
                "matrices": {size.key: size.bpw for size in layer},
            }
            for block, layer in zip(source.spec.blocks, layers, strict=True)
        ],
        "memory": describe_memory(source, cache_tokens, draft),
    }


def report_tables(report: dict[str, Any], matrices: bool) -> list[Table]:
    return [
        summary_table(report),
        matrix_table(report) if matrices else layer_table(report),
        *plan_tables(report["memory"]),
    ]


def summary_table(report: dict[str, Any]) -> Table:
    table = plain_table()
    head = report["head_bpw"]
    table.add_row("model", report["folder"])
    table.add_row("architecture", f"{report['architecture']}, {report['num_layers']} layers of {report['hidden_size']}")
    table.add_row("files", gigabytes(report["file_bytes"]))
    table.add_row("decoder", f"{report['decoder_weights'] / 1e6:,.1f} M weights, {report['decoder_bpw']:.3f} bits each")
    table.add_row("head", "shares the embedding's matrix" if head is None else f"{head:.3f} bits a weight")
    return table


def layer_table(report: dict[str, Any]) -> Table:
    table = bits_table("layer", "attention", "mlp", "all")
    for number, layer in enumerate(report["layers"]):
        figures = (f"{layer[part]:.2f}" for part in ("attention_bpw", "mlp_bpw", "bpw"))
        table.add_row(str(number), *figures, bar(layer["bpw"]))
    return table


def matrix_table(report: dict[str, Any]) -> Table:
    table = bits_table("matrix", "bits")
    for layer in report["layers"]:
        for key, bpw in layer["matrices"].items():
            table.add_row(key, f"{bpw:.2f}", bar(bpw))
    return table


def plain_table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def bits_table(label: str, *figures: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(label, justify="left", no_wrap=True)
    for figure in figures:
        table.add_column(figure, justify="right")
    table.add_column(f"0 .. {BITS_AT_FULL_BAR:g} bits", no_wrap=True)
    return table


def bar(bpw: float) -> str:
    """A bar whose full width stands for eight bits; unquantized layers fill it."""
    return "█" * round(min(bpw / BITS_AT_FULL_BAR, 1.0) * BAR_WIDTH)
