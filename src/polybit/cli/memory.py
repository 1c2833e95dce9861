"""A memory plan as plain data and as tables for people."""

from typing import Any

from rich.table import Table

from polybit.amounts import gibibytes
from polybit.errors import OutOfMemory
from polybit.generator.drafting import open_draft
from polybit.generator.load import Planned, plan_with
from polybit.model.footprint import is_quantized
from polybit.model.machine import AUTO, imagined_machine
from polybit.model.plan import Share
from polybit.model.setup import Setup
from polybit.model.source import ModelSource
from polybit.text import Tokenizer


def plan_for(source: ModelSource, cache_tokens: int | None, draft: str | None) -> Planned:
    """For this machine, or for the cards whose sizes `gpu_split` lists: they need not be here.

    `draft`: a model that is to guess for it. Raises ConfigError for another vocabulary, OutOfMemory.
    """
    split = source.options.gpu_split
    machine = None if split in (None, AUTO) else imagined_machine(str(split))
    guesser = None if draft is None else open_draft(draft, source, Tokenizer.open(source.folder))
    return plan_with(source, guesser, cache_tokens, machine)


def describe_memory(source: ModelSource, cache_tokens: int | None, draft: str | None) -> dict[str, Any]:
    """The plan as plain data, or what is in its way."""
    try:
        return describe_plan(source, plan_for(source, cache_tokens, draft))
    except OutOfMemory as error:
        return {"problem": str(error)}


def describe_plan(source: ModelSource, planned: Planned) -> dict[str, Any]:
    """Sizes in bytes; layers count from 0. What is free for the model is what its draft leaves."""
    described = describe_setup(source, planned.setup)
    if planned.draft is None:
        return described | {"longest_cache_tokens": planned.setup.plan.longest, "draft": None}
    draft = planned.draft
    folder = {"folder": str(draft.source.folder), "total_bytes": draft.num_bytes}
    return described | {"draft": folder | describe_setup(draft.source, draft.setup)}


def describe_setup(source: ModelSource, setup: Setup) -> dict[str, Any]:
    plan = setup.plan
    return {
        "devices": [describe_share(share) for share in plan.shares],
        "weights_held": "dequantized" if setup.unpacked and is_quantized(source) else "as stored",
        "embedding_on": "cpu" if plan.table.type == "cpu" else str(plan.table),
        "layers_in_ram": list(plan.offloaded),
        "ram_bytes": plan.ram,
        "cache_tokens": plan.cache_tokens,
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
    if "problem" in memory:
        return [problem_table(memory)]
    draft = memory["draft"]
    return [device_table(memory), summary_table(memory), *([] if draft is None else [device_table(draft, "draft")])]


def device_table(memory: dict[str, Any], heading: str = "device") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(heading, no_wrap=True)
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
    longest = memory.get("longest_cache_tokens")
    fitting = "" if longest is None else f"; {longest:,} would fit"
    table.add_row("cache", f"{memory['cache_tokens']:,} tokens{fitting}")
    if memory["draft"] is not None:
        table.add_row("draft", f"{memory['draft']['folder']}, {gibibytes(memory['draft']['total_bytes'])} in all")
    return table


def problem_table(memory: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("memory", memory["problem"])
    return table


def span(layers: list[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
