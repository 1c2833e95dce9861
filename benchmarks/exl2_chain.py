"""The products of a decode step that follow one another, as one launch and one by one: compared, then timed.

    PYTHONPATH=src:benchmarks python benchmarks/exl2_chain.py [--rows 1 4 16] [--model 70b 8b] [--json FILE]

A chain is what a layer does after its attention: o, gate+up, down, and q+k+v of the next layer. Prints microseconds a
layer in a graph over copies of the weights, and the share of the measured read bandwidth at which their bytes went by.
"""

import argparse
import json
from pathlib import Path

import torch
from exl2_decode import COPIES_BYTES, DEVICE, D2, L4, M2, MAX_ERROR, S2, make, median_ms, read_bandwidth
from torch import Tensor

from polybit.kernels.cuda.chain import chain
from polybit.kernels.cuda.decode import gated_multiply, multiply, norm_multiply
from polybit.kernels.protocol import Gate, Link, Norm
from polybit.spec import Activation

SHAPES = {
    "70b": (8192, 8192, 28672, 1024, M2, S2, D2, S2),
    "8b": (4096, 4096, 14336, 1024, L4, L4, L4, L4),
}
EPS, OFFSET = 1e-5, 0.0


def layer(name: str) -> list[Link]:
    hidden, heads, inner, kv_heads, o, up, down, qkv = SHAPES[name]
    norms = [torch.rand(hidden, device=DEVICE).half() + 0.5 for _ in range(2)]
    matrices = [
        make(heads, [(hidden, o)])[1],
        make(hidden, [(inner, up), (inner, up)])[1],
        make(inner, [(hidden, down)])[1],
        make(hidden, [(heads, qkv), (kv_heads, qkv), (kv_heads, qkv)])[1],
    ]
    starts = [None, Norm(norms[0], EPS, OFFSET), Gate(Activation.SILU), Norm(norms[1], EPS, OFFSET)]
    return [Link(m, None, start, i in (0, 2)) for i, (m, start) in enumerate(zip(matrices, starts, strict=True))]


def one_by_one(links: list[Link], first: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    o, gate_up, down, qkv = (link.matrix for link in links)
    x = multiply(first, o, x)
    gate, up = norm_multiply(x, links[1].start.weight, EPS, OFFSET, gate_up).chunk(2, dim=1)
    x = gated_multiply(gate, up, Activation.SILU, down, x)
    return x, norm_multiply(x, links[3].start.weight, EPS, OFFSET, qkv)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def microseconds(calls: list) -> float:
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls * 4:
            call()
    return median_ms(graph.replay) / len(calls) / 4 * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--model", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bandwidth, rows = read_bandwidth(), []
    print(f"{torch.cuda.get_device_name(0)}: reads {bandwidth / 1e9:.0f} GB/s")
    for name in args.model:
        hidden, heads = SHAPES[name][:2]
        layers = [layer(name) for _ in range(4)]
        chains = [chain(links) for links in layers]
        num_bytes = sum(link.matrix.stream.nbytes for link in layers[0])
        if len(layers) * num_bytes < COPIES_BYTES or None in chains:
            raise SystemExit(f"{name}: no chain, or too small to time")
        for count in args.rows:
            first = torch.randn(count, heads, device=DEVICE).half() * 0.1
            x = torch.randn(count, hidden, device=DEVICE).half()
            wanted, found = one_by_one(layers[0], first, x), chains[0](first, x)
            again = chains[0](first, x)
            errors = [error(a, b) for a, b in zip(found, wanted, strict=True)]
            if not max(errors) < MAX_ERROR or not all(map(torch.equal, found, again)):
                raise SystemExit(f"{name}, {count} rows: errors {errors}, expected below {MAX_ERROR} and repeatable")
            together = microseconds([lambda c=c: c(first, x) for c in chains])
            apart = microseconds([lambda c=c: one_by_one(c, first, x) for c in layers])
            share = num_bytes / together * 1e6 / bandwidth
            tables = next(t for t in chains[0]._tables.values() if t.form.most_rows >= count)
            rows.append({"model": name, "rows": count, "us": together, "apart_us": apart, "fraction": share})
            print(
                f"{name} {count:3d} rows: {together:6.1f} us ({apart:6.1f} apart) {share:6.1%} "
                f"{tables.warps} warps, {tables.slots} slots, errors {errors[0]:.1e} {errors[1]:.1e}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"device": torch.cuda.get_device_name(0), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
