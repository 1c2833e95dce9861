"""Compiles every Triton kernel for a GPU that need not be there, and prints what each one takes. Run as a program.

The interpreter takes some programs that the compiler refuses. Launches are recorded, not made: a kernel is compiled for
what the backend calls it with.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from polybit.format.exl2 import Exl2Tensor, Group, Layout, encode
from polybit.format.gptq import GptqTensor
from polybit.kernels import triton as backend
from polybit.kernels.pages import new_pages
from polybit.kernels.protocol import HeadNorm, Rotation
from polybit.kernels.triton import rounding
from polybit.spec import Activation

SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes of shared memory that a program may have
TYPES = {
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
CPU = torch.device("cpu")


def compile_for(target: GPUTarget) -> Callable[..., None]:
    """What stands in for a launch."""

    def compile_launch(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            value = bound.pop(parameter.name)
            specialized = isinstance(value, int) and not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (specialized and value == 1):
                signature[parameter.name], constants[(i,)] = "constexpr", value
                continue
            signature[parameter.name] = _type(value)
            aligned = isinstance(value, Tensor) and not parameter.do_not_specialize_on_alignment
            if aligned or (specialized and value % 16 == 0):
                attributes[(i,)] = [["tt.divisibility", 16]]
        compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=bound)
        shared = compiled.metadata.shared
        sys.stdout.write(f"{kernel.__name__} for sm_{target.arch}: {shared} bytes of shared memory\n")
        assert shared <= SHARED[target.arch]

    return compile_launch


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def small_ops() -> None:
    x, weight = torch.zeros(4, 4096).half(), torch.ones(4096).half()
    backend.rms_norm(x, weight, 1e-5, 0.0)
    backend.layer_norm(x, weight, weight, 1e-5)
    backend.rms_norm(torch.zeros(4, 32, 128).half(), weight[:128], 1e-5, 0.0)
    for activation in Activation:
        backend.activate(x, activation)
        backend.gated_activate(x, x, activation)
    q, k, pages = torch.zeros(4, 32, 128).half(), torch.zeros(4, 8, 128).half(), torch.zeros(2, 256, 8, 128).half()
    for interleaved in (False, True):
        backend.rope(q, k, torch.arange(4), torch.zeros(9, 32), torch.zeros(9, 32), interleaved)
    backend.write_kv(k, k, pages, pages, torch.arange(4))
    for bits in (4, 8):
        backend.write_kv(k, k, pages, new_pages(pages.shape, bits, torch.float16, CPU), torch.arange(4))
    backend.embedding(torch.arange(4), x, 1.0)


def attention() -> None:
    for queries, dim, page, window, softcap, bits in (
        (1, 128, 256, None, None, 16),
        (8, 128, 256, None, None, 16),
        (2048, 128, 256, None, None, 16),
        (1, 80, 100, 4096, None, 16),
        (2048, 256, 256, 1024, 50.0, 16),
        (8, 128, 256, None, None, 4),
        (2048, 80, 100, 1024, 50.0, 8),
        (2048, 256, 256, None, None, 4),
    ):
        q = torch.zeros(8, 32, dim).half()
        table, ones = torch.zeros(1, 2, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
        pages = new_pages((2, page, 8, dim), bits, torch.float16, CPU)
        backend.attention(q, pages, pages, table, ones, ones[:1], queries, 0.1, window, softcap)


def decode_attention() -> None:
    length, table = torch.ones(1, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int32)
    for dtype, heads, dim, page, normed, interleaved, window, softcap, bits in (
        (torch.float16, (64, 8), 128, 256, False, False, None, None, 16),
        (torch.float16, (8, 4), 256, 256, True, False, 1024, 50.0, 16),
        (torch.float16, (48, 1), 80, 100, False, True, None, None, 16),
        (torch.float32, (4, 4), 64, 256, False, False, None, None, 16),
        (torch.float16, (64, 8), 128, 256, False, False, None, None, 4),
        (torch.float16, (48, 1), 80, 100, True, True, 1024, 50.0, 8),
        (torch.float32, (4, 4), 64, 256, False, False, None, None, 4),
    ):
        q, k = (torch.zeros(1, count, dim, dtype=dtype) for count in heads)
        norm = HeadNorm(torch.ones(dim, dtype=dtype), 1e-6, 0.0) if normed else None
        rotation = Rotation(torch.zeros(9, 32), torch.zeros(9, 32), interleaved)
        pages = new_pages((2, page, heads[1], dim), bits, dtype, CPU)
        given = (q, k, k, pages, pages, table, length)
        backend.decode_attention(*given, norm, norm, rotation, 0.1, window, softcap)


def exl2_tensor() -> Exl2Tensor:
    layout, zeros = Layout((Group(4, 128), Group(3, 128))), torch.zeros(256, 256, dtype=torch.int32)
    return encode(zeros, zeros[:2], torch.ones(2).half(), layout, torch.arange(256))


def gptq_tensor(g_idx: Tensor | None) -> GptqTensor:
    zeros = torch.zeros(32, 256, dtype=torch.int32)
    return GptqTensor(zeros, zeros[:2, :32], torch.ones(2, 256).half(), g_idx, None)


def matrices() -> None:
    packed = [backend.prepare_exl2(exl2_tensor(), 1.0, CPU, torch.float16, False)]
    for g_idx in (None, torch.arange(256) % 2):
        packed.append(backend.prepare_gptq(gptq_tensor(g_idx), 1.0, CPU, torch.float16, False))
    for matrix in packed:
        for rows in (1, 64):
            backend.matmul(torch.zeros(rows, 256).half(), matrix)
        backend.dequantize(matrix)


def loops_of_quantization() -> None:
    for rows, bits in ((32, 8), (64, 2), (96, 3), (128, 4)):
        x, columns, square = torch.zeros(rows, 4096), torch.ones(4096), torch.eye(rows)
        rounding.round_rows(x, columns, square, bits)
        group = (x, x, x.to(torch.uint8), columns.to(torch.uint8), columns[:1].half())
        rounding.descend_group(*group, square, bits)
        rounding.fit_and_round(x, columns[:rows], columns, columns[:24], square, bits, 7)
        rounding.scale_costs(x[None], columns[None, :rows], columns, torch.zeros(1, 24, 16), bits, 7)
        rounding.factor_errors(x, columns, columns[:97], bits)


if __name__ == "__main__":
    architecture = int(sys.argv[1])
    JITFunction.run = compile_for(GPUTarget("cuda", architecture, 32))
    sys.modules["polybit.kernels.triton.attention"].shared_bytes = lambda device: SHARED[architecture]
    sys.modules["polybit.kernels.triton.decode_attention"].can_overlap = lambda device: architecture >= 90
    small_ops()
    attention()
    decode_attention()
    matrices()
    loops_of_quantization()
