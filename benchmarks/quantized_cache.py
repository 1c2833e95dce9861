"""A decode step's attention on the card over full and quantized pages. JSON to stdout.

    PYTHONPATH=src python benchmarks/quantized_cache.py

Microseconds of one layer inside a CUDA graph of many, whose keys and values together do not fit the second-level cache,
and how many bits a number those take. One whose result is wrong gets no time, and the program exits with 1.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decode_attention import COLD_BYTES, DEVICE, DTYPE, HEADS, PAGE, microseconds
from polybit.kernels import reference
from polybit.kernels import triton as backend
from polybit.kernels.pages import Pages, new_pages, read_bits, tensors_of
from polybit.kernels.protocol import Rotation

TOLERANCE = 3e-3  # relative Frobenius error
CONTEXT = 8192
BATCHES, CACHES = (1, 4, 16), ("fp16", "q8", "q6", "q4")

Layer = tuple[Pages, Pages]


@dataclass(frozen=True)
class Step:
    """One new token for each sequence, and its layers full of random numbers."""

    q: Tensor
    k: Tensor
    v: Tensor
    layers: list[Layer]
    page_table: Tensor
    lengths: Tensor
    rotation: Rotation

    @classmethod
    def random(cls, heads: tuple[int, int, int], batch: int, cache: str) -> "Step":
        num_heads, num_kv_heads, dim = heads
        bits, used = read_bits(cache), CONTEXT // PAGE + 1
        shape = (batch * used, PAGE, num_kv_heads, dim)
        slots = torch.arange(batch * used * PAGE, device=DEVICE)
        layers = list[Layer]()
        while sum(map(num_bytes, layers)) < COLD_BYTES or len(layers) < 3:
            layer = new_pages(shape, bits.k, DTYPE, DEVICE), new_pages(shape, bits.v, DTYPE, DEVICE)
            numbers = torch.randn(2, len(slots), num_kv_heads, dim, device=DEVICE, dtype=DTYPE)
            backend.write_kv(*numbers, *layer, slots)
            layers.append(layer)
        angles = torch.rand(CONTEXT + 1, dim // 2, device=DEVICE) * 6
        q, k, v = (
            torch.randn(batch, count, dim, device=DEVICE, dtype=DTYPE)
            for count in (num_heads, num_kv_heads, num_kv_heads)
        )
        return cls(
            q, k, v, layers,
            torch.randperm(batch * used, device=DEVICE).to(torch.int32).view(batch, used),
            torch.full((batch,), CONTEXT + 1, device=DEVICE, dtype=torch.int32),
            Rotation(angles.cos(), angles.sin(), False),
        )  # fmt: skip

    def attend(self, layer: Layer, by: Any = backend) -> Tensor:
        given = (self.q, self.k, self.v, *layer, self.page_table, self.lengths)
        mixed: Tensor = by.decode_attention(*given, None, None, self.rotation, self.q.shape[2] ** -0.5, None, None)
        return mixed


def num_bytes(layer: Layer) -> int:
    return sum(tensor.nbytes for pages in layer for tensor in tensors_of(pages))


def error(step: Step) -> float:
    """The reference's new token goes where the kernel's went."""
    found, expected = step.attend(step.layers[0]).double(), step.attend(step.layers[0], reference).double()
    return float((found - expected).norm() / expected.norm())


def measure(name: str, batch: int, cache: str) -> dict[str, Any]:
    step = Step.random(HEADS[name], batch, cache)
    numbers = 2 * step.page_table.numel() * PAGE * HEADS[name][1] * HEADS[name][2]
    bits = 8 * num_bytes(step.layers[0]) / numbers
    report = {"shape": name, "batch": batch, "cache": cache, "bits": bits, "error": error(step)}
    if not report["error"] <= TOLERANCE:
        return report | {"wrong": True}
    return report | {"us": round(microseconds(step, step.attend), 2)}


def main() -> None:
    torch.manual_seed(0)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    reports = []
    for name in HEADS:
        for batch in BATCHES:
            for cache in CACHES:
                reports.append(measure(name, batch, cache))
                print(reports[-1], file=sys.stderr)
    machine = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit}
    print(json.dumps({**machine, "context": CONTEXT, "steps": reports}, indent=1))
    sys.exit(any("wrong" in report for report in reports))


if __name__ == "__main__":
    main()
