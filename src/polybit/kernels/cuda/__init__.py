"""EXL2 products in CUDA C++ for NVIDIA GPUs, compiled at first use by NVRTC; the other operations are Triton's.

Needs the extra `polybit[cuda]`: cuda-core, which brings NVRTC. No toolkit, no compiler.
"""

from polybit.kernels.cuda.matrices import dequantize, gated_matmul, join, matmul, norm_matmul, prepare_exl2
from polybit.kernels.triton import (
    activate,
    attention,
    embedding,
    gated_activate,
    layer_norm,
    prepare_dense,
    prepare_gptq,
    rms_norm,
    rope,
    write_kv,
)

__all__ = [
    "DEVICES",
    "NAME",
    "NATIVE_OPS",
    "READS_PACKED",
    "activate",
    "attention",
    "dequantize",
    "embedding",
    "gated_activate",
    "gated_matmul",
    "join",
    "layer_norm",
    "matmul",
    "norm_matmul",
    "prepare_dense",
    "prepare_exl2",
    "prepare_gptq",
    "rms_norm",
    "rope",
    "write_kv",
]

NAME = "cuda"
DEVICES = frozenset({"cuda"})
READS_PACKED = frozenset({"exl2", "gptq"})
NATIVE_OPS = frozenset({"dequantize", "gated_matmul", "matmul", "norm_matmul"})
