"""Kernels in Triton for NVIDIA and AMD GPUs. Needs the package `triton`, which torch's GPU builds for Linux bring."""

from triton import knobs

from polybit.kernels.reference import join, prepare_dense
from polybit.kernels.triton.activations import activate, gated_activate
from polybit.kernels.triton.attention import attention
from polybit.kernels.triton.decode_attention import decode_attention
from polybit.kernels.triton.embedding import embedding
from polybit.kernels.triton.matrices import (
    dequantize,
    exl2_bytes,
    gated_matmul,
    matmul,
    norm_matmul,
    prepare_exl2,
    prepare_gptq,
)
from polybit.kernels.triton.norms import layer_norm, rms_norm
from polybit.kernels.triton.pages import write_kv
from polybit.kernels.triton.rope import rope

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

NAME = "triton"
DEVICES = frozenset({"cuda", "cpu"} if knobs.runtime.interpret else {"cuda"})
KEPT_BYTES = 1 << 20  # counters of parts of a sum
READS_PACKED = frozenset({"exl2", "gptq"})
READS_QUANTIZED_PAGES = True
HOLDS_SCORES = False
NATIVE_OPS = frozenset(
    {
        "activate",
        "attention",
        "decode_attention",
        "dequantize",
        "embedding",
        "gated_activate",
        "gated_matmul",
        "layer_norm",
        "matmul",
        "norm_matmul",
        "rms_norm",
        "rope",
        "write_kv",
    }
)
