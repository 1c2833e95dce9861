"""A decode step's attention on the card: in one launch, and by the operations that it is made of. JSON to stdout.

    PYTHONPATH=src python benchmarks/decode_attention.py

Microseconds of one layer inside a CUDA graph of many, whose keys and values together do not fit the second-level cache.
One whose result is wrong gets no time, and the program exits with 1.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels import triton as backend
from polybit.kernels.protocol import Rotation

DEVICE, DTYPE = torch.device("cuda"), torch.float16
TOLERANCE = 2e-3  # relative Frobenius error
PAGE = 256
COLD_BYTES = 256 << 20  # of keys and values in one graph
CALLS = 32  # at least, in one graph
HEADS = {"70B": (64, 8, 128), "8B": (32, 8, 128)}  # queries, keys, features
BATCHES, CONTEXTS = (1, 4, 16, 64), (128, 2048, 8192)

Call = Callable[[Tensor], Tensor]  # pages of one layer -> mixed values


@dataclass(frozen=True)
class Step:
    """A step of one token for each sequence, in layers [L, 2, pages, P, Hkv, D] of random numbers."""

    heads: tuple[int, int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    layers: Tensor
    page_table: Tensor
    lengths: Tensor
    rotation: Rotation

    @classmethod
    def random(cls, heads: tuple[int, int, int], batch: int, context: int) -> "Step":
        num_heads, num_kv_heads, dim = heads
        used = -(-(context + 1) // PAGE)
        layer_bytes = 2 * batch * used * PAGE * num_kv_heads * dim * DTYPE.itemsize
        shape = (max(3, COLD_BYTES // layer_bytes), 2, batch * used, PAGE, num_kv_heads, dim)
        columns = torch.randn(batch, (num_heads + 2 * num_kv_heads) * dim, device=DEVICE, dtype=DTYPE)
        widths = [num_heads * dim, num_kv_heads * dim, num_kv_heads * dim]
        q, k, v = (part.unflatten(1, (-1, dim)) for part in columns.split(widths, 1))
        angles = torch.rand(context + 1, dim // 2, device=DEVICE) * 6
        return cls(
            heads, q, k, v,
            torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_(),
            torch.randperm(batch * used, device=DEVICE).to(torch.int32).view(batch, used),
            torch.full((batch,), context + 1, device=DEVICE, dtype=torch.int32),
            Rotation(angles.cos(), angles.sin(), False),
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        """Of keys and values that are read."""
        return 2 * int(self.lengths.sum()) * self.heads[1] * self.heads[2] * DTYPE.itemsize

    def in_one(self, pages: Tensor) -> Tensor:
        return self._whole(backend.decode_attention, pages)

    def expected(self, pages: Tensor) -> Tensor:
        return self._whole(reference.decode_attention, pages)

    def _whole(self, op: Callable[..., Tensor], pages: Tensor) -> Tensor:
        given = (self.q, self.k, self.v, *pages.unbind(), self.page_table, self.lengths)
        return op(*given, None, None, self.rotation, self.heads[2] ** -0.5, None, None)

    def by_parts(self) -> Call:
        positions, rotation = self.lengths.long() - 1, self.rotation
        slots = self.page_table[:, -1].long() * PAGE + positions % PAGE
        starts = torch.arange(len(positions) + 1, device=DEVICE, dtype=torch.int32)

        def call(pages: Tensor) -> Tensor:
            k_pages, v_pages = pages.unbind()
            q, k = backend.rope(self.q, self.k, positions, rotation.cos, rotation.sin, rotation.interleaved)
            backend.write_kv(k, self.v, k_pages, v_pages, slots)
            scale, where = self.heads[2] ** -0.5, (self.page_table, starts, self.lengths)
            return backend.attention(q, k_pages, v_pages, *where, 1, scale, None, None)

        return call


def error(step: Step) -> float:
    found, expected = step.in_one(step.layers[0]).double(), step.expected(step.layers[0]).double()
    return float((found - expected).norm() / expected.norm())


def microseconds(step: Step, call: Call) -> float:
    """Of one layer, the median of some replays."""
    call(step.layers[0])
    graph, calls = torch.cuda.CUDAGraph(), max(CALLS, len(step.layers))
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(step.layers[i % len(step.layers)])
    times = []
    for _ in range(8):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(1000 * start.elapsed_time(stop) / calls)
    return statistics.median(times[1:])


def measure(name: str, batch: int, context: int) -> dict[str, Any]:
    step = Step.random(HEADS[name], batch, context)
    report = {"shape": name, "batch": batch, "context": context, "error": error(step)}
    if not report["error"] <= TOLERANCE:
        return report | {"wrong": True}
    parts, one = microseconds(step, step.by_parts()), microseconds(step, step.in_one)
    rate = round(step.num_bytes / one / 1000)
    return report | {"us_by_parts": round(parts, 2), "us_in_one": round(one, 2), "gb_per_s": rate}


def main() -> None:
    torch.manual_seed(0)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    reports = []
    for name in HEADS:
        for batch in BATCHES:
            for context in CONTEXTS:
                reports.append(measure(name, batch, context))
                print(reports[-1], file=sys.stderr)
    machine = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit}
    print(json.dumps({**machine, "steps": reports}, indent=1))
    sys.exit(any("wrong" in report for report in reports))


if __name__ == "__main__":
    main()
