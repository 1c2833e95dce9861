"""Every CUDA kernel once over small matrices, compared with the format's definition; for a tool to watch.

    PYTHONPATH=src python benchmarks/small_products.py

Sizes are odd, tensors are made on the CPU: a tool has only the kernels of this project, and copies, to watch.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor, Group, Layout
from polybit.kernels import reference
from polybit.kernels.cuda import matrices, streamed
from polybit.kernels.cuda.decode import MAX_ROWS
from polybit.kernels.cuda.gather import gather
from polybit.spec import Activation

DEVICE = torch.device("cuda:0")
ROWS = (1, 8, 16, 27, MAX_ROWS)  # more are torch's to multiply; what is done for them is checked apart
MAX_ERROR = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
WIDTHS = (2, 3, 4, 5, 6, 8)
MIXTURE = ((8, 32), (6, 64), (5, 32), (4, 96), (3, 64), (2, 288))  # 576 rows
CASES = {
    **{f"{bits} bits": ([(bits, 64), (bits, 96), (bits, 32)], (96,)) for bits in WIDTHS},
    "mixture": (list(MIXTURE), (160,)),
    "joined": (list(MIXTURE), (160, 32, 96)),
    "one block": ([(4, 32)], (32,)),
    "long": ([(3, 128), *[(2, 128)] * 15, (2, 32)], (64,)),  # 2080 rows: one tile, divided among thread blocks
}


def random_tensor(groups: list[tuple[int, int]], num_columns: int, random: torch.Generator) -> Exl2Tensor:
    layout = Layout(tuple(Group(bits, rows) for bits, rows in groups))
    q = torch.cat([torch.randint(0, 1 << bits, (rows, num_columns), generator=random) for bits, rows in groups])
    codes = torch.randint(0, 16, (len(groups), num_columns), generator=random)
    maxima = (torch.rand(len(groups), generator=random) * 0.1 + 0.01).half()
    return exl2.encode(q, codes, maxima, layout, torch.randperm(layout.in_features, generator=random))


def products(
    tensors: list[Exl2Tensor], dtype: torch.dtype, random: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What was computed, how it came out, and what is right."""
    prepared = [streamed.prepare(tensor, 1.0, DEVICE, dtype) for tensor in tensors]
    matrix = streamed.join(prepared) if len(prepared) > 1 else prepared[0]
    dense = torch.cat([exl2.dequantize(tensor) for tensor in tensors], dim=1).double()
    yield "dequantized", matrices.dequantize(matrix), dense
    x, order = torch.randn(3, matrix.in_features, generator=random).to(dtype), matrix.order_of(0)
    yield "gathered", gather(x.to(DEVICE), order), x[:, order.cpu().long()].double()
    for rows in ROWS:
        x, up = torch.randn(2, rows, matrix.in_features, generator=random).to(dtype)
        weight = torch.rand(matrix.in_features, generator=random).to(dtype)
        residual = torch.randn(rows, dense.shape[1], generator=random)
        normed = reference.rms_norm(x.double(), weight.double(), 1e-5, 0.0)
        gated = reference.gated_activate(x.double(), up.double(), Activation.SILU)
        on = [part.to(DEVICE) for part in (x, up, weight, residual)]
        yield f"{rows} rows", matrices.matmul(on[0], matrix), x.double() @ dense
        yield f"{rows} rows and a residual", matrices.matmul(on[0], matrix, on[3]), x.double() @ dense + residual
        yield f"{rows} rows normed", matrices.norm_matmul(on[0], on[2], 1e-5, 0.0, matrix), normed @ dense
        yield f"{rows} rows gated", matrices.gated_matmul(on[0], on[1], Activation.SILU, matrix), gated @ dense


def main() -> None:
    random, count = torch.Generator().manual_seed(0), 0
    for name, (groups, widths) in CASES.items():
        for dtype, most in MAX_ERROR.items():
            tensors = [random_tensor(groups, width, random) for width in widths]
            for what, found, right in products(tensors, dtype, random):
                error = float((found.cpu().double() - right).norm() / right.norm())
                count += 1
                if not error <= most:
                    sys.exit(f"{name}, {what}, {dtype}: relative error {error:.1e}, at most {most:g} is right")
    print(f"{count} results of the CUDA kernels are right")


if __name__ == "__main__":
    main()
