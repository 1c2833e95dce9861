"""`polybit inspect`: where a model's bits went, and what it needs in memory."""

from typing import Annotated, Any

import typer
from rich.table import Table

from polybit.cli.console import print_json, results
from polybit.cli.shared_options import ModelName, loading
from polybit.kernels.registry import get_backend
from polybit.model.device import choose_device, choose_dtype, describe
from polybit.model.options import LoadOptions
from polybit.model.plan import plan_memory
from polybit.model.sizes import bits_per_weight, file_bytes, head_size, layer_sizes
from polybit.model.source import ModelSource, open_model

BAR_WIDTH = 32
BITS_AT_FULL_BAR = 8.0


@loading
def inspect(
    model: ModelName,
    options: LoadOptions,
    context: Annotated[
        int | None,
        typer.Option("--context", "-c", min=1, help="Tokens to plan memory for.", show_default="the model's longest"),
    ] = None,
    matrices: Annotated[bool, typer.Option("--matrices", help="List every matrix, not only layers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show bits per weight of every layer, sizes, and the memory needed at a context length."""
    report = describe_model(open_model(model, options), context)
    if as_json:
        print_json(report)
    else:
        print_report(report, matrices)


def describe_model(source: ModelSource, context: int | None) -> dict[str, Any]:
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
        "memory": describe_memory(source, context),
    }


def describe_memory(source: ModelSource, context: int | None) -> dict[str, Any]:
    """What weights and K/V cache take on the device that would be chosen; work space comes on top."""
    device = choose_device(source.options.device)
    plan = plan_memory(source, device, choose_dtype(source.options.dtype, device))
    backend, wanted = get_backend(source.options.backend, device), source.options.unpacked
    unpacked = plan.should_unpack(backend) if wanted is None else wanted
    tokens = context or source.spec.max_seq_len
    return {
        "device": describe(device),
        "free_bytes": plan.free,
        "weights_held": "dequantized" if unpacked and is_quantized(source) else "as stored",
        "weights_bytes": plan.weights(unpacked),
        "context": tokens,
        "cache_bytes": tokens * plan.kv_per_token,
        "total_bytes": plan.weights(unpacked) + tokens * plan.kv_per_token,
    }


def is_quantized(source: ModelSource) -> bool:
    return any(source.checkpoint.kind(linear.key) in ("exl2", "gptq") for linear in source.spec.linears)


def print_report(report: dict[str, Any], matrices: bool) -> None:
    results.print(summary_table(report))
    results.print()
    results.print(matrix_table(report) if matrices else layer_table(report))
    results.print()
    results.print(memory_table(report["memory"]))


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


def memory_table(memory: dict[str, Any]) -> Table:
    table = plain_table()
    table.add_row("on", f"{memory['device']}, {gigabytes(memory['free_bytes'])} free")
    table.add_row("weights", f"{gigabytes(memory['weights_bytes'])}, {memory['weights_held']}")
    table.add_row("cache", f"{gigabytes(memory['cache_bytes'])} for {memory['context']:,} tokens")
    table.add_row("together", f"{gigabytes(memory['total_bytes'])}, and some work space")
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


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
