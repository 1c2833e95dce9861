"""How fast a model loads, and how fast its bytes could be read: plain reads into pinned memory, by as many threads.

python benchmarks/load.py FOLDER [--device cuda] [--repeat 3] [--json FILE]

The folder is read once beforehand, so that all of it comes from the page cache if that can hold it. Before a figure is
printed, some tensors that were read ahead are compared with the file.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from polybit.bench.report import source_commit
from polybit.format.read_ahead import BUFFER_BYTES, WORKERS, Part, read_ahead
from polybit.model.device import describe
from polybit.model.load import build
from polybit.model.options import LoadOptions
from polybit.model.setup import set_up
from polybit.model.sizes import file_bytes
from polybit.model.source import ModelSource, open_model

CHECKED = 20  # tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source = open_model(given.folder, LoadOptions(device=given.device))
    report = measure(source, given.repeat)
    for name, seconds in report["seconds"].items():
        print(f"{name:24} {seconds:8.2f} s {report['file_bytes'] / seconds / 1e9:8.2f} GB/s")
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(source: ModelSource, repeat: int) -> dict[str, Any]:
    read_files(source)
    setup = set_up(source, 0)
    device = setup.plan.device
    check(source, device)

    def load() -> None:
        build(source, setup)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return {
        "file_bytes": file_bytes(source),
        "device": describe(device),
        "machine": platform.node(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "seconds": {
            f"read, {WORKERS} threads": fastest(lambda: read_files(source), repeat),
            "read and copied": fastest(lambda: stream(source, device), repeat),
            "loaded": fastest(load, repeat),
        },
    }


def fastest(run: Callable[[], object], repeat: int) -> float:
    """Reading has one-sided noise: whatever else the machine does makes it slower."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def read_files(source: ModelSource) -> None:
    """Every byte of the weight files into pinned buffers, and nothing else."""
    checkpoint = source.checkpoint
    files = sorted({checkpoint.file_of(name) for name in checkpoint.names()})
    pieces = [(path, start) for path in files for start in range(0, path.stat().st_size, BUFFER_BYTES)]
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(read_some, [pieces[i::WORKERS] for i in range(WORKERS)]):
            pass


def read_some(pieces: list[tuple[Path, int]]) -> None:
    buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy().data
    for path, start in pieces:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            file.readinto(buffer)


def stream(source: ModelSource, device: torch.device) -> None:
    """Large tensors to the device, in parts of a block's size, each dropped when the next is there."""
    names = sorted(source.checkpoint.names())
    size = max(1, len(names) // len(source.spec.blocks))
    parts = [Part(tuple(names[start : start + size]), device) for start in range(0, len(names), size)]
    for _ in read_ahead(source.checkpoint, parts):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check(source: ModelSource, device: torch.device) -> None:
    """Ends the program where what arrives is not what the file holds: then nothing that was timed means anything."""
    names = sorted(source.checkpoint.names(), key=source.checkpoint.num_bytes)[-CHECKED:]
    for name, view in zip(names, read_ahead(source.checkpoint, [Part((name,), device) for name in names]), strict=True):
        if not torch.equal(view.tensor(name).cpu(), source.checkpoint.tensor(name)):
            raise SystemExit(f"error: {name} arrives on {device} with other contents than in {source.folder}")


if __name__ == "__main__":
    main()
