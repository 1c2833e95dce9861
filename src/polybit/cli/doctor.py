"""`polybit doctor`: what this machine has, what serves what, what is missing and the command that mends it."""

import importlib.metadata
import inspect
import platform
import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.table import Table

import polybit
from polybit import env
from polybit.amounts import gibibytes
from polybit.cli.console import results
from polybit.errors import KernelError
from polybit.kernels.protocol import Backend
from polybit.kernels.registry import BACKENDS, get_backend, load_backend
from polybit.model.device import choose_device, describe
from polybit.model.machine import free_bytes


@dataclass(frozen=True)
class Extra:
    """A package that polybit uses where it is installed."""

    package: str
    purpose: str
    wanted: str | None = None  # what pip is asked for, where that is not the package


NO_OPERATIONS = frozenset({"exl2_bytes", "join"})  # they compute nothing: one counts, one lays matrices together

EXTRAS = (
    Extra("cuda-core", "the fastest kernels on NVIDIA graphics cards", "'polybit[cuda]'"),
    Extra("numba", "fast models and conversion on the CPU", "'polybit[cpu]'"),
    Extra("gguf", "GGUF files as a source for conversion, and the demo"),
    Extra("pyarrow", "parquet files as calibration text"),
    Extra("llguidance", "answers that follow a JSON schema, a regular expression or a grammar"),
)


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", help="Device to ask about.", show_default="the one that would be chosen")
    ] = None,
) -> None:
    """Check this machine: device, versions, which kernels serve which operation, and what could be added."""
    chosen = choose_device(device)
    results.print(machine_table(chosen))
    results.print()
    for name in BACKENDS:
        results.print(backend_report(name, chosen), markup=False)
        results.print()
    for extra in EXTRAS:
        results.print(extra_line(extra), markup=False)


def machine_table(device: torch.device) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("polybit", polybit.__version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    table.add_row("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    table.add_row("device", describe(device))
    table.add_row("free memory", gibibytes(free_bytes(device)))
    table.add_row("cache folder", str(env.cache_dir()))
    return table


def backend_report(name: str, device: torch.device) -> Table | str:
    """What the backend computes itself, or why it cannot be had."""
    try:
        backend = load_backend(name)
    except KernelError as error:
        return str(error)
    return backend_table(backend, is_default=backend is get_backend(None, device))


def backend_table(backend: Backend, is_default: bool) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.title = f"backend {backend.NAME}" + (" (default)" if is_default else "")
    table.add_column("operation")
    table.add_column("served by")
    for op in operations():
        table.add_row(op, backend.NAME if op in backend.NATIVE_OPS else f"fallback: {home_of(backend, op)}")
    return table


def home_of(backend: Backend, op: str) -> str:
    """The backend whose operation another one re-exports: `triton` of polybit.kernels.triton.norms."""
    return str(getattr(backend, op).__module__).removeprefix("polybit.kernels.").partition(".")[0]


def operations() -> list[str]:
    """Names of everything that a backend computes, as the Protocol lists them."""
    functions = inspect.getmembers(Backend, inspect.isfunction)
    return [name for name, _ in functions if name not in NO_OPERATIONS and not name.startswith(("_", "prepare_"))]


def extra_line(extra: Extra) -> str:
    """Unbroken, so that the command can be copied."""
    version = installed_version(extra.package)
    if version is not None:
        return f"{extra.package} {version}: {extra.purpose}"
    wanted = extra.wanted or extra.package
    return f"no {extra.package} for {extra.purpose}; to add it: {sys.executable} -m pip install {wanted}"


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
