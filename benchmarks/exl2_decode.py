"""EXL2 products of a few rows on the card, alone: checked against the dequantized product, then timed.

    PYTHONPATH=src python benchmarks/exl2_decode.py [--rows 1 4 16] [--shapes "70b o 2.2"] [--json FILE]

Prints microseconds, and the share of the measured read bandwidth at which the weights' bytes went by. Launches are
captured in a graph, over copies of the weights so that none comes from the second-level cache.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from card import Unfit, about_this_card
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels.cuda import streamed
from polybit.kernels.cuda.decode import multiply
from polybit.kernels.cuda.streamed import Streamed
from polybit.quantizer.candidates import parameter_set

DEVICE = torch.device("cuda:0")
MAX_ERROR = 2e-3  # relative Frobenius
COPIES_BYTES = 250e6  # several times the second-level cache
REPEATS = 15

S2, M2, D2 = "5%x3b/g64 + 95%x2b/g64", "10%x3b/g64 + 90%x2b/g64", "5%x6b/g32 + 20%x3b/g64 + 75%x2b/g64"
L4, H6 = "100%x4b/g128", "15%x8b/g128 + 85%x6b/g128"
SHAPES = {
    "70b qkv 2.2": (8192, [(8192, S2), (1024, S2), (1024, S2)]),
    "70b o 2.2": (8192, [(8192, M2)]),
    "70b gate+up 2.2": (8192, [(28672, S2), (28672, S2)]),
    "70b down 2.3": (28672, [(8192, D2)]),
    "70b head 6": (8192, [(128256, H6)]),
    "8b qkv 4": (4096, [(4096, L4), (1024, L4), (1024, L4)]),
    "8b o 4": (4096, [(4096, L4)]),
    "8b gate+up 4": (4096, [(14336, L4), (14336, L4)]),
    "8b down 4": (14336, [(4096, L4)]),
}


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


def error(x: Tensor, tensors: list[Exl2Tensor], matrix: Streamed) -> float:
    wanted = torch.cat([x.float() @ exl2.dequantize(tensor).float() for tensor in tensors], dim=1)
    return float((multiply(x, matrix).float() - wanted).norm() / wanted.norm())


def microseconds(x: Tensor, matrices: list[Streamed]) -> float:
    """Median of a launch in a graph of launches over all copies; sorting the activations included."""
    launches = matrices * max(1, 16 // len(matrices))
    for matrix in matrices:
        multiply(x, matrix)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for matrix in launches:
            multiply(x, matrix)
    return median_ms(graph.replay) / len(launches) * 1e3


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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of the source tree, where git cannot be asked")
    args = parser.parse_args()
    try:
        about = about_this_card(args.commit)
    except Unfit as why:
        raise SystemExit(f"error: {why}") from why
    bandwidth = read_bandwidth()
    print(f"{about['card']}: reads {bandwidth / 1e9:.0f} GB/s")
    rows = []
    for name in args.shapes:
        in_features, parts = SHAPES[name]
        tensors, matrix = make(in_features, parts)
        copies = [make(in_features, parts)[1] for _ in range(min(8, int(COPIES_BYTES / matrix.num_bytes)))]
        for count in args.rows:
            x = torch.randn(count, in_features, device=DEVICE).half()
            found = error(x, tensors, matrix)
            if not found < MAX_ERROR:
                raise SystemExit(f"{name}, {count} rows: error {found:.2e}, expected below {MAX_ERROR}: no figures")
            taken = microseconds(x, [matrix, *copies])
            share = matrix.stream.nbytes / taken * 1e6 / bandwidth
            rows.append({"shape": name, "rows": count, "us": taken, "fraction": share, "error": found})
            print(f"{name:16s} {count:3d} rows {taken:8.1f} us {matrix.stream.nbytes / 1e6:7.1f} MB {share:6.1%}")
    if args.json:
        args.json.write_text(json.dumps(about | {"read_gb_s": bandwidth / 1e9, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
