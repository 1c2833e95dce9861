"""Products of prompts on the card: their kernels checked, then timed alone, then the products of one layer of a 70B.

    PYTHONPATH=src python benchmarks/exl2_prefill.py [--tokens 2048] [--json FILE]

Prints gigabytes a second of dequantizing and of gathering beside what the card writes and copies, and milliseconds of
the layer beside the time that its multiplications would take at the measured rate.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from card import about_this_card
from exl2_decode import DEVICE, SHAPES, make, median_ms, random_tensor
from polybit.bench.ceilings import matmul_tflops
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels import cuda, reference
from polybit.kernels.cuda import prompt, streamed
from polybit.kernels.cuda.gather import gather, gather_gated, gather_normed
from polybit.kernels.cuda.streamed import Streamed
from polybit.spec import Activation

MAX_ERROR = 2e-3  # relative Frobenius
CALLS = 10  # for one measurement
MIX = "5%x3b/g64 + 95%x2b/g64"
TEXTS = [MIX, *(f"100%x{bits}b/g64" for bits in (2, 3, 4, 5, 6, 8))]
LAYER = ("70b qkv 2.2", "70b o 2.2", "70b gate+up 2.2", "70b down 2.3")


def require(name: str, found: Tensor, expected: Tensor, most: float) -> None:
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    if not error <= most:
        raise SystemExit(f"{name}: error {error:.2e}, expected at most {most:.0e}: no figures")


def dense(matrix: Streamed, columns: int) -> Tensor:
    out = torch.full((columns, matrix.in_features), torch.nan, dtype=matrix.dtype, device=DEVICE)
    matrix.dequantize(0, 0, columns, out)
    return out


def check(dtype: torch.dtype) -> None:
    """Every width, odd sizes, and what is gathered, against the format and the reference."""
    for in_features in (576, 1376, 2080, 8192):
        perm = torch.randperm(in_features)
        order = perm.int().to(DEVICE)
        for text in [*TEXTS, "10%x8b/g32 + 10%x6b/g32 + 10%x5b/g32 + 20%x4b/g64 + 20%x3b/g64 + 30%x2b/g64"]:
            tensor = random_tensor(in_features, 224, text, perm)
            matrix = streamed.prepare(tensor, 1.0, DEVICE, dtype)
            rows = matrix.order_of(0).long()
            require(f"{text}, {in_features}", dense(matrix, 224).T, exl2.dequantize(tensor)[rows].to(dtype), 0)
        x = torch.randn(71, 2 * in_features, device=DEVICE)
        weight, (gate, up) = torch.rand(in_features, device=DEVICE).to(dtype), x.to(dtype).chunk(2, dim=1)
        at = order.long()
        require("gather", gather(gate, order), gate[:, at], 0)
        normed = reference.rms_norm(x[:, :in_features], weight.float(), 1e-5, 0.0)[:, at]
        require("norm", gather_normed(x[:, :in_features], weight, 1e-5, 0.0, dtype, order), normed, MAX_ERROR * 2)
        gated = reference.gated_activate(gate.float(), up.float(), Activation.SILU)[:, at]
        require("gate", gather_gated(gate, up, Activation.SILU, order), gated, MAX_ERROR * 2)


def ms(run) -> float:
    """Of one call among several in a row."""

    def calls() -> None:
        for _ in range(CALLS):
            run()

    calls()
    return median_ms(calls) / CALLS


def time_dequantizing(columns: int) -> dict[str, float]:
    """GB/s written and read, by widths."""
    found = dict[str, float]()
    for text in TEXTS:
        matrix = streamed.prepare(random_tensor(8192, columns, text, torch.randperm(8192)), 1.0, DEVICE, torch.float16)
        out = torch.empty(columns, 8192, dtype=torch.float16, device=DEVICE)
        taken = ms(lambda matrix=matrix, out=out: matrix.dequantize(0, 0, columns, out))
        found[text] = (out.nbytes + matrix.stream.nbytes) / taken / 1e6
        print(f"dequantize {columns:5d} x 8192, {text:24s} {taken * 1e3:7.1f} us {found[text]:6.0f} GB/s", flush=True)
    return found


def time_gathering(tokens: int) -> dict[str, float]:
    """GB/s read and written."""
    half, wide = (torch.randn(tokens, width, device=DEVICE).half() for width in (8192, 57344))
    x, weight = half.float(), torch.rand(8192, device=DEVICE).half()
    near, far = (torch.randperm(width).int().to(DEVICE) for width in (8192, 28672))
    gate, up = wide.chunk(2, dim=1)
    ways = {
        "rows of 8192": (lambda: gather(half, near), 4 * half.numel()),
        "normed rows of 8192": (lambda: gather_normed(x, weight, 1e-5, 0.0, half.dtype, near), 6 * half.numel()),
        "rows of 28672": (lambda: gather(gate, far), 2 * wide.numel()),
        "gated rows of 28672": (lambda: gather_gated(gate, up, Activation.SILU, far), 3 * wide.numel()),
    }
    found = dict[str, float]()
    for name, (run, num_bytes) in ways.items():
        taken = ms(run)
        found[name] = num_bytes / taken / 1e6
        print(f"gather {name:20s} {taken * 1e3:7.1f} us {found[name]:6.0f} GB/s", flush=True)
    return found


class Layer:
    """The products of one layer, as a model calls them."""

    def __init__(self, tokens: int) -> None:
        self.made = [make(*SHAPES[name][:2]) for name in LAYER]
        self.x = torch.randn(tokens, 8192, device=DEVICE)
        self.mixed = torch.randn(tokens, 8192, device=DEVICE).half()
        self.gate, self.up = torch.randn(tokens, 57344, device=DEVICE).half().chunk(2, dim=1)
        self.weight = torch.rand(8192, device=DEVICE).half()

    @property
    def matrices(self) -> list[Streamed]:
        return [matrix for _, matrix in self.made]

    @property
    def num_weights(self) -> int:
        return sum(matrix.in_features * matrix.out_features for matrix in self.matrices)

    def run(self) -> tuple[Tensor, ...]:
        qkv, o, gate_up, down = self.matrices
        return (
            cuda.norm_matmul(self.x, self.weight, 1e-5, 0.0, qkv),
            cuda.matmul(self.mixed, o, self.x),
            cuda.norm_matmul(self.x, self.weight, 1e-5, 0.0, gate_up),
            cuda.gated_matmul(self.gate, self.up, Activation.SILU, down, self.x),
        )

    def check(self) -> None:
        """Against products of the first columns, dequantized by the format."""
        normed = reference.rms_norm(self.x, self.weight.float(), 1e-5, 0.0).half()
        gated = reference.gated_activate(self.gate.float(), self.up.float(), Activation.SILU).half()
        inputs = (normed, self.mixed, normed, gated)
        for name, (tensors, _), given, found in zip(LAYER, self.made, inputs, self.run(), strict=True):
            expected = torch.cat([given.float() @ columns(tensor).float() for tensor in tensors], dim=1)
            starts = [sum(t.out_features for t in tensors[:i]) for i in range(len(tensors))]
            part = torch.cat([found[:, start : start + 192].float() for start in starts], dim=1)
            if found.dtype == torch.float32:
                part -= self.x[:, :192]
            require(name, part, expected, MAX_ERROR)


def columns(tensor: Exl2Tensor) -> Tensor:
    return exl2.dequantize(tensor.columns(0, 192))


def products_alone(layer: Layer, tokens: int) -> float:
    """Milliseconds of the layer's multiplications, in pieces of the same shape."""
    taken = 0.0
    for matrix in layer.matrices:
        most = min(matrix.out_features, prompt.piece_columns(matrix.in_features, tokens, processors()))
        x = torch.randn(tokens, matrix.in_features, device=DEVICE).half()
        weights = torch.randn(most, matrix.in_features, device=DEVICE).half() / 64
        out = torch.empty(tokens, matrix.out_features, dtype=torch.float16, device=DEVICE)
        taken += ms(lambda x=x, weights=weights, out=out, most=most: _pieces(x, weights, out, most))
    return taken


def _pieces(x: Tensor, weights: Tensor, out: Tensor, most: int) -> None:
    for start in range(0, out.shape[1], most):
        stop = min(start + most, out.shape[1])
        torch.mm(x, weights[: stop - start].T, out=out[:, start:stop])


def processors() -> int:
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="of the source tree, where git cannot be asked")
    args = parser.parse_args()
    for dtype in (torch.float16, torch.bfloat16):
        check(dtype)
    buffer, other = (torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    writes, copies = buffer.nbytes / ms(buffer.zero_) / 1e6, 2 * buffer.nbytes / ms(lambda: buffer.copy_(other)) / 1e6
    rate, about = matmul_tflops(DEVICE, torch.float16), about_this_card(args.commit)
    print(
        f"{about['card']}: checked; writes {writes:.0f} GB/s, copies {copies:.0f} GB/s, multiplies {rate:.0f} TFLOP/s"
    )
    rows = {columns: time_dequantizing(columns) for columns in (6144, 2048)}
    gathers = time_gathering(args.tokens)
    layer = Layer(args.tokens)
    layer.check()
    taken, alone = ms(layer.run), products_alone(layer, args.tokens)
    limit = 2 * layer.num_weights * args.tokens / rate / 1e9
    print(f"a layer's products, {args.tokens} tokens: {taken:.2f} ms, multiplications alone {alone:.2f}, ", end="")
    print(f"at the card's rate {limit:.2f} ({limit / taken:.1%})")
    if args.json:
        said = {
            **about, "write_gb_s": writes, "copy_gb_s": copies, "matmul_tflops": rate, "dequantize_gb_s": rows,
            "gather_gb_s": gathers, "layer_ms": taken, "products_ms": alone, "limit_ms": limit, "tokens": args.tokens,
        }  # fmt: skip
        args.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
