"""A memory plan as plain data and as tables for people."""

from typing import Any

from rich.table import Table

from polybit.amounts import gibibytes
from polybit.errors import OutOfMemory
from polybit.generator.load import plan_for as plan_as_loading_does
from polybit.model.footprint import is_quantized
from polybit.model.machine import AUTO, imagined_machine
from polybit.model.plan import Share
from polybit.model.setup import Setup
from polybit.model.source import ModelSource


def plan_for(source: ModelSource, cache_tokens: int | None) -> Setup:
    """For this machine, or for the cards whose sizes `gpu_split` lists: they need not be here. OutOfMemory."""
    split = source.options.gpu_split
    return plan_as_loading_does(source, cache_tokens, None if split in (None, AUTO) else imagined_machine(str(split)))


def describe_memory(source: ModelSource, cache_tokens: int | None) -> dict[str, Any]:
    """The plan as plain data, or what is in its way."""
    try:
        return describe_plan(source, plan_for(source, cache_tokens))
    except OutOfMemory as error:
        return {"problem": str(error)}


def describe_plan(source: ModelSource, setup: Setup) -> dict[str, Any]:
    """Sizes in bytes; layers count from 0."""
    plan = setup.plan
    return {
        "devices": [describe_share(share) for share in plan.shares],
        "weights_held": "dequantized" if setup.unpacked and is_quantized(source) else "as stored",
        "embedding_on": "cpu" if plan.table.type == "cpu" else str(plan.table),
        "layers_in_ram": list(plan.offloaded),
        "ram_bytes": plan.ram,
        "cache_tokens": plan.cache_tokens,
        "longest_cache_tokens": plan.longest,
    }


def describe_share(share: Share) -> dict[str, Any]:
    return {
        "device": str(share.device),
        "layers": list(share.blocks),
        "free_bytes": share.free,
        "weights_bytes": share.weights,
        "cache_bytes": share.cache,
        "scratch_bytes": share.scratch,
        "total_bytes": share.total,
    }


def plan_tables(memory: dict[str, Any]) -> list[Table]:
    """What is on each device, and what holds for all of them."""
    return [device_table(memory), summary_table(memory)] if "problem" not in memory else [problem_table(memory)]


def device_table(memory: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("device", no_wrap=True)
    for column in ("layers", "weights", "cache", "work space", "together", "usable"):
        table.add_column(column, justify="right")
    for row in memory["devices"]:
        sizes = (row[f"{part}_bytes"] for part in ("weights", "cache", "scratch", "total", "free"))
        table.add_row(row["device"], span(row["layers"]), *map(gibibytes, sizes))
    return table


def summary_table(memory: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("weights", memory["weights_held"])
    table.add_row("embedding", "in RAM" if memory["embedding_on"] == "cpu" else f"on {memory['embedding_on']}")
    if memory["layers_in_ram"]:
        slow = f"{span(memory['layers_in_ram'])}: copied to the GPU at each use, which is slow"
        table.add_row("layers in RAM", slow)
    if memory["ram_bytes"]:
        table.add_row("RAM", f"{gibibytes(memory['ram_bytes'])} for the GPU's use")
    table.add_row("cache", f"{memory['cache_tokens']:,} tokens; {memory['longest_cache_tokens']:,} would fit")
    return table


def problem_table(memory: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("memory", memory["problem"])
    return table


def span(layers: list[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
