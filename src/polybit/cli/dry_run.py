"""`polybit convert --dry-run`: what a conversion would make and take, before anything is written."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from polybit import spec
from polybit.amounts import gigabytes
from polybit.bench.ceilings import matmul_tflops
from polybit.cli.console import note, print_tables
from polybit.cli.description import read_description
from polybit.model.device import describe
from polybit.model.machine import free_bytes, free_ram
from polybit.model.source import open_model
from polybit.quantizer.begin import check_reach, check_source, devices_of, rooms
from polybit.quantizer.estimate import Estimate, estimate
from polybit.quantizer.folders import check_room
from polybit.quantizer.needs import source_bytes
from polybit.quantizer.options import ConvertOptions, check_options
from polybit.quantizer.target import Target, targets_of


def dry_run(source: str, out: Path, options: ConvertOptions, bits: Sequence[float]) -> None:
    """Refuses what a conversion refuses at its start; a disk or memory that is too small is said after the figures."""
    check_options(options)
    targets = targets_of(out, bits)
    model = checked_model(source, options, targets)
    devices = devices_of(options)
    note("measuring how fast this machine multiplies")
    rate = matmul_tflops(devices[0], torch.float32) * 1e12
    found = estimate(model, options, targets, rate)
    unpacks = source.lower().endswith(".gguf")
    print_tables([results_table(targets, found), needs_table(model, devices, rate, found, unpacks)])
    check_room(rooms(model, out, options, targets))


def checked_model(source: str, options: ConvertOptions, targets: Sequence[Target]) -> spec.Model:
    """Of a folder that is here every tensor's header is read, of all others the description alone."""
    if Path(source).expanduser().is_dir():
        opened = open_model(source)
        check_source(opened, options, targets)
        model = opened.spec
    else:
        model = read_description(source)
    check_reach(model, options, targets)
    return model


def results_table(targets: Sequence[Target], found: Estimate) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("bits per weight", justify="right")
    table.add_column("size", justify="right")
    table.add_column("would be made", overflow="fold")
    for target, size in zip(targets, found.disk.results, strict=True):
        table.add_row(f"{target.bits:g}", gigabytes(size), str(target.folder))
    return table


def needs_table(
    model: spec.Model, devices: Sequence[torch.device], rate: float, found: Estimate, unpacks: bool
) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    num_weights = sum(linear.in_features * linear.out_features for linear in model.linears)
    table.add_row(
        "model", f"{model.architecture}, {len(model.blocks)} layers, {num_weights / 1e6:,.0f} M weights in them"
    )
    unpacked = ", unpacked beside OUT while it works" if unpacks else ""
    table.add_row("source", f"{gigabytes(source_bytes(model))} at 16 bits a weight{unpacked}")
    table.add_row("disk", f"{gigabytes(found.disk.work)} while it works, {gigabytes(sum(found.disk.results))} for good")
    for name, needed, free in memories(devices, found):
        shortage = "" if needed <= free else "; that is not enough"
        table.add_row(name, f"about {gigabytes(needed)}, of {gigabytes(free)} free{shortage}")
    table.add_row("time", f"about {duration(sum(found.seconds.values()))}, good to a factor of two: " + stages(found))
    alone = ", as if it were alone" if len(devices) > 1 else ""
    reached = f"{rate / 1e9:,.0f} billion operations a second that {describe(devices[0])} just reached"
    table.add_row("", f"from the {reached}{alone}")
    return table


def memories(devices: Sequence[torch.device], found: Estimate) -> list[tuple[str, int, int]]:
    """Name, bytes needed and bytes free of each."""
    memory, (first, *helpers) = found.memory, devices
    if first.type != "cuda":
        return [("memory", memory.ram + memory.device, free_ram())]
    gpus = [("GPU memory", memory.device + memory.resident, free_bytes(first))]
    gpus += [(f"of {helper}", memory.helper, free_bytes(helper)) for helper in helpers]
    return [("memory", memory.ram, free_ram()), *gpus]


def stages(found: Estimate) -> str:
    return ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in found.seconds.items())


def duration(seconds: float) -> str:
    """In the unit that people use for so long."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
