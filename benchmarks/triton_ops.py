"""Every operation of the Triton backend on the card: checked against the reference, then timed. JSON to stdout.

    PYTHONPATH=src python benchmarks/triton_ops.py [name ...]

Times are medians with a cold second-level cache; `gb_per_s` counts the bytes that an operation cannot avoid. One whose
result is wrong gets no time, and the program exits with 1.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from card import about_this_card
from polybit.format.exl2 import Exl2Tensor, Group, Layout, encode
from polybit.kernels import reference
from polybit.kernels import triton as backend
from polybit.kernels.protocol import Backend
from polybit.spec import Activation

DEVICE, DTYPE = torch.device("cuda"), torch.float16
TOLERANCE = 5e-3  # relative Frobenius error
PAGE = 256


@dataclass(frozen=True)
class Case:
    """call(backend) -> result; num_bytes: read and written at least; flops: of matrix products."""

    name: str
    call: Callable[[Backend], Tensor]
    num_bytes: float
    flops: float = 0.0


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def small_cases() -> Iterator[Case]:
    for tokens in (1, 16, 2048):
        x, weight = randn(tokens, 4096), randn(4096)
        yield Case(f"rms_norm {tokens}x4096", lambda b, x=x, w=weight: b.rms_norm(x, w, 1e-5, 0.0), 2 * x.nbytes)
        gate, up = randn(tokens, 14336), randn(tokens, 14336)
        yield Case(
            f"gated_activate {tokens}x14336",
            lambda b, g=gate, u=up: b.gated_activate(g, u, Activation.SILU),
            3 * gate.nbytes,
        )
        q, k = randn(tokens, 32, 128), randn(tokens, 8, 128)
        angles, positions = torch.rand(4096, 64, device=DEVICE), torch.arange(tokens, device=DEVICE)
        cos, sin = angles.cos(), angles.sin()
        yield Case(
            f"rope {tokens}x32+8x128",
            lambda b, q=q, k=k, p=positions, c=cos, s=sin: torch.cat(b.rope(q, k, p, c, s, False), 1),
            2 * (q.nbytes + k.nbytes),
        )
        pages = [randn(tokens // PAGE + 1, PAGE, 8, 128) for _ in range(2)]
        yield Case(
            f"write_kv {tokens}x8x128",
            lambda b, k=k, pages=pages, p=positions: (b.write_kv(k, k, *pages, p), pages[1])[1],
            4 * k.nbytes,
        )


def attention_cases() -> Iterator[Case]:
    for sequences, queries, length in (
        (1, 1, 512),
        (1, 1, 4096),
        (1, 1, 32768),
        (16, 1, 4096),
        (64, 1, 2048),
        (1, 4, 4096),
        (1, 2048, 2048),
        (1, 2048, 16384),
    ):
        yield attention_case(sequences, queries, length, heads=32, kv_heads=8, dim=128)
    yield attention_case(1, 1, 4096, heads=8, kv_heads=4, dim=256)
    yield attention_case(1, 2048, 2048, heads=8, kv_heads=4, dim=256)


def attention_case(sequences: int, queries: int, length: int, heads: int, kv_heads: int, dim: int) -> Case:
    used = -(-length // PAGE)
    table = torch.randperm(sequences * used, device=DEVICE).to(torch.int32).view(sequences, used)
    pages = [randn(sequences * used, PAGE, kv_heads, dim) for _ in range(2)]
    q = randn(sequences * queries, heads, dim)
    starts = torch.tensor([0, *accumulate([queries] * sequences)], dtype=torch.int32, device=DEVICE)
    lengths = torch.full((sequences,), length, dtype=torch.int32, device=DEVICE)
    seen = queries * (length - queries) + queries * (queries + 1) / 2  # keys, over the queries of a sequence
    return Case(
        f"attention {sequences}x{queries} of {length}, {heads}/{kv_heads} heads of {dim}",
        lambda b: b.attention(q, *pages, table, starts, lengths, queries, dim**-0.5, None, None),
        num_bytes=2 * sequences * length * kv_heads * dim * 2 + 2 * q.nbytes,
        flops=4 * sequences * heads * dim * seen,
    )


def matrix_cases() -> Iterator[Case]:
    for bits in (2, 3, 4, 5, 6, 8):
        for in_features, out_features in ((4096, 4096), (4096, 14336)):
            name, tensor = f"{bits} bits {in_features}x{out_features}", random_exl2(bits, in_features, out_features)
            prepared = {b.NAME: b.prepare_exl2(tensor, 1.0, DEVICE, DTYPE, False) for b in (reference, backend)}
            dense_bytes = 2 * in_features * out_features
            yield Case(f"dequantize {name}", lambda b, m=prepared: b.dequantize(m[b.NAME]), dense_bytes)
            for rows in (1, 4, 16, 64, 2048):
                x = randn(rows, in_features)
                yield Case(
                    f"matmul {name}, {rows} rows",
                    lambda b, x=x, m=prepared: b.matmul(x, m[b.NAME]),
                    tensor.num_bytes,
                    2 * rows * in_features * out_features,
                )


def random_exl2(bits: int, in_features: int, out_features: int) -> Exl2Tensor:
    layout = Layout((Group(bits, 128),) * (in_features // 128))
    q = torch.randint(0, 2**bits, (in_features, out_features), device=DEVICE, dtype=torch.uint8)
    codes = torch.randint(0, 16, (len(layout.groups), out_features), device=DEVICE)
    scale_max = torch.rand(len(layout.groups), device=DEVICE) * 0.02
    return encode(q, codes, scale_max, layout, torch.randperm(in_features, device=DEVICE))


def measure(case: Case) -> dict[str, Any]:
    started = time.perf_counter()
    found = case.call(backend).double()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    expected = case.call(reference).double()
    error = float((found - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        return {"op": case.name, "error": error, "wrong": True}
    ms = do_bench(lambda: case.call(backend), return_mode="median")
    report = {"op": case.name, "error": error, "first_s": round(first, 3), "us": round(1000 * ms, 2)}
    report["gb_per_s"] = round(case.num_bytes / ms / 1e6)
    return report | ({"tflops": round(case.flops / ms / 1e9, 1)} if case.flops else {})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="beginnings of operations' names; all if none")
    names = tuple(parser.parse_args().names)
    reports = []
    for cases in (small_cases(), attention_cases(), matrix_cases()):
        for case in cases:
            if case.name.startswith(names or ""):
                reports.append(measure(case))
                print(reports[-1], file=sys.stderr)
    print(json.dumps(about_this_card(None) | {"ops": reports}, indent=1))
    sys.exit(any("wrong" in report for report in reports))


if __name__ == "__main__":
    main()
