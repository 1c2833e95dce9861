"""EXL2 products of a few rows on the card, alone: checked against the dequantized product, then timed.

    PYTHONPATH=src python benchmarks/exl2_decode.py [--rows 1 4 16] [--shapes "70b o 2.2"] [--layers "70b 2.2"]
        [--json FILE]

Prints microseconds with what comes before a product in a model, its norm or gate, and the share of the measured read
bandwidth at which the weights' bytes went by; then those of a layer's products in their order. Launches are captured in
a graph, over copies of the weights so that none comes from the second-level cache.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from card import Unfit, about_this_card
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels.cuda import streamed
from polybit.kernels.cuda.matrices import gated_matmul, matmul, norm_matmul
from polybit.kernels.cuda.streamed import Streamed
from polybit.quantizer.candidates import parameter_set
from polybit.spec import Activation

DEVICE = torch.device("cuda:0")
MAX_ERROR = 2e-3  # relative Frobenius
COPIES_BYTES = 250e6  # several times the second-level cache
REPEATS = 15

S2, M2, D2 = "5%x3b/g64 + 95%x2b/g64", "10%x3b/g64 + 90%x2b/g64", "5%x6b/g32 + 20%x3b/g64 + 75%x2b/g64"
L4, H6 = "100%x4b/g128", "15%x8b/g128 + 85%x6b/g128"
SHAPES = {  # features, matrices, what comes before
    "70b qkv 2.2": (8192, [(8192, S2), (1024, S2), (1024, S2)], "norm"),
    "70b o 2.2": (8192, [(8192, M2)], "plain"),
    "70b gate+up 2.2": (8192, [(28672, S2), (28672, S2)], "norm"),
    "70b down 2.3": (28672, [(8192, D2)], "gate"),
    "70b head 6": (8192, [(128256, H6)], "norm"),
    "8b qkv 4": (4096, [(4096, L4), (1024, L4), (1024, L4)], "norm"),
    "8b o 4": (4096, [(4096, L4)], "plain"),
    "8b gate+up 4": (4096, [(14336, L4), (14336, L4)], "norm"),
    "8b down 4": (14336, [(4096, L4)], "gate"),
}
LAYERS = {
    "70b 2.2": ("70b o 2.2", "70b gate+up 2.2", "70b down 2.3", "70b qkv 2.2"),
    "8b 4": ("8b o 4", "8b gate+up 4", "8b down 4", "8b qkv 4"),
}
EPS, OFFSET = 1e-5, 0.0


def random_tensor(in_features: int, out_features: int, text: str, perm: Tensor) -> Exl2Tensor:
    layout = parameter_set(text).layout(in_features)
    num_groups = len(layout.groups)
    empty = exl2.encode(
        torch.zeros(in_features, 32, dtype=torch.uint8), torch.zeros(num_groups, 32, dtype=torch.uint8),
        torch.rand(num_groups) * 0.02 + 0.005, layout, perm.cpu(),
    )  # fmt: skip

    def words(rows: int, columns: int) -> Tensor:
        return torch.randint(-(2**31), 2**31 - 1, (rows, columns), dtype=torch.int32, device=DEVICE)

    weight, scale = words(layout.packed_rows, out_features), words(num_groups, out_features // 8)
    return Exl2Tensor(weight, scale, empty.q_scale_max.to(DEVICE), empty.q_groups, empty.q_invperm.to(DEVICE))


def make(in_features: int, parts: list[tuple[int, str]]) -> tuple[list[Exl2Tensor], Streamed]:
    perm = torch.randperm(in_features)
    tensors = [random_tensor(in_features, width, text, perm) for width, text in parts]
    return tensors, streamed.join([streamed.prepare(tensor, 1.0, DEVICE, torch.float16) for tensor in tensors])


@dataclass(frozen=True)
class Input:
    """Random activations of a product, and what it does to them first."""

    kind: str
    x: Tensor  # a norm's in fp32, as residual streams are; a gate's with what it lets through behind
    weight: Tensor

    @classmethod
    def make(cls, kind: str, rows: int, width: int) -> "Input":
        x = torch.randn(rows, 2 * width if kind == "gate" else width, device=DEVICE)
        return cls(kind, x if kind == "norm" else x.half(), torch.rand(width, device=DEVICE).half() + 0.5)

    def multiply(self, matrix: Streamed) -> Tensor:
        return product(self.kind, self.x, self.weight, matrix, None)

    def dense(self) -> Tensor:
        x = self.x.float()
        if self.kind == "norm":
            return torch.nn.functional.rms_norm(x, x.shape[1:], self.weight.float(), EPS)
        if self.kind == "gate":
            gate, up = x.chunk(2, dim=1)
            return torch.nn.functional.silu(gate) * up
        return x


def product(kind: str, x: Tensor, weight: Tensor, matrix: Streamed, residual: Tensor | None) -> Tensor:
    if kind == "norm":
        return norm_matmul(x, weight, EPS, OFFSET, matrix)
    if kind == "gate":
        gate, up = x.chunk(2, dim=1)
        return gated_matmul(gate, up, Activation.SILU, matrix, residual)
    return matmul(x, matrix, residual)


def error(given: Input, tensors: list[Exl2Tensor], matrix: Streamed) -> float:
    wanted = torch.cat([given.dense() @ exl2.dequantize(tensor).float() for tensor in tensors], dim=1)
    return float((given.multiply(matrix).float() - wanted).norm() / wanted.norm())


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Median of a call in a graph of them."""
    for call in calls:
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median_ms(graph.replay) / len(calls) * 1e3


Layer = tuple[Streamed, Streamed, Streamed, Streamed]  # o, gate and up, down, q and k and v


def make_layers(name: str, copies: int = 4) -> list[Layer]:
    o, gate_up, down, qkv = (SHAPES[shape] for shape in LAYERS[name])
    return [(make(*o[:2])[1], make(*gate_up[:2])[1], make(*down[:2])[1], make(*qkv[:2])[1]) for _ in range(copies)]


def layer_us(layers: list[Layer], rows: int) -> float:
    """Of a layer's products in their order, each on what the one before gave."""
    o, gate_up = layers[0][:2]
    first = torch.randn(rows, o.in_features, device=DEVICE).half()
    stream = torch.randn(rows, gate_up.in_features, device=DEVICE)
    weight = Input.make("norm", rows, gate_up.in_features).weight

    def run(o: Streamed, gate_up: Streamed, down: Streamed, qkv: Streamed) -> None:
        x = product("plain", first, weight, o, stream)
        inner = product("norm", x, weight, gate_up, None)
        x = product("gate", inner, weight, down, x)
        product("norm", x, weight, qkv, None)

    return microseconds([partial(run, *layer) for layer in layers * 4])


def median_ms(run) -> float:
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def read_bandwidth() -> float:
    """Bytes a second of a reduction over 8 GB."""
    data = torch.rand(1 << 31, device=DEVICE)
    return data.nbytes / median_ms(data.amax) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--layers", nargs="*", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of the source tree, where git cannot be asked")
    args = parser.parse_args()
    try:
        about = about_this_card(args.commit)
    except Unfit as why:
        raise SystemExit(f"error: {why}") from why
    bandwidth = read_bandwidth()
    print(f"{about['card']}: reads {bandwidth / 1e9:.0f} GB/s")
    rows, layers = [], []
    for name in args.shapes:
        in_features, parts, kind = SHAPES[name]
        tensors, matrix = make(in_features, parts)
        copies = [make(in_features, parts)[1] for _ in range(min(8, int(COPIES_BYTES / matrix.num_bytes)))]
        launches = [matrix, *copies] * max(1, 16 // (1 + len(copies)))
        for count in args.rows:
            given = Input.make(kind, count, in_features)
            found = error(given, tensors, matrix)
            if not found < MAX_ERROR:
                raise SystemExit(f"{name}, {count} rows: error {found:.2e}, expected below {MAX_ERROR}: no figures")
            taken = microseconds([partial(given.multiply, each) for each in launches])
            share = matrix.stream.nbytes / taken * 1e6 / bandwidth
            rows.append({"shape": name, "input": kind, "rows": count, "us": taken, "fraction": share, "error": found})
            size = f"{matrix.stream.nbytes / 1e6:7.1f} MB"
            print(f"{name:16s} {kind:5s} {count:3d} rows {taken:8.1f} us {size} {share:6.1%}", flush=True)
    for name in args.layers:
        made = make_layers(name)
        for count in args.rows:
            layers.append({"layer": name, "rows": count, "us": layer_us(made, count)})
            print(f"{name:16s} layer {count:3d} rows {layers[-1]['us']:8.1f} us")
    if args.json:
        said = about | {"read_gb_s": bandwidth / 1e9, "rows": rows, "layers": layers}
        args.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
