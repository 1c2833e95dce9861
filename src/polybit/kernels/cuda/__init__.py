"""EXL2 products in CUDA C++ for NVIDIA GPUs, compiled at first use by NVRTC; the other operations are Triton's.

Needs the extra `polybit[cuda]`: cuda-core, which brings NVRTC. No toolkit, no compiler.
"""

from polybit.kernels.cuda.matrices import (
    dequantize,
    exl2_bytes,
    gated_matmul,
    join,
    matmul,
    norm_matmul,
    prepare_exl2,
)
from polybit.kernels.triton import (
    activate,
    attention,
    decode_attention,
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
    "HOLDS_SCORES",
    "KEPT_BYTES",
    "NAME",
    "NATIVE_OPS",
    "READS_PACKED",
    "READS_QUANTIZED_PAGES",
    "activate",
    "attention",
    "decode_attention",
    "dequantize",
    "embedding",
    "exl2_bytes",
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
KEPT_BYTES = 49 << 20  # sums of thread blocks, on up to 192 multiprocessors
READS_PACKED = frozenset({"exl2", "gptq"})
READS_QUANTIZED_PAGES = True
HOLDS_SCORES = False
NATIVE_OPS = frozenset({"dequantize", "gated_matmul", "matmul", "norm_matmul"})
