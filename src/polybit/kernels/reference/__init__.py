"""Plain torch, fp32 inside: the oracle for every other backend, and what runs where no faster one exists."""

from polybit.kernels.reference.activations import activate, gated_activate
from polybit.kernels.reference.attention import attention
from polybit.kernels.reference.composed import decode_attention, gated_matmul, norm_matmul
from polybit.kernels.reference.embedding import embedding
from polybit.kernels.reference.matrices import (
    dequantize,
    exl2_bytes,
    join,
    matmul,
    prepare_dense,
    prepare_exl2,
    prepare_gptq,
)
from polybit.kernels.reference.norms import layer_norm, rms_norm
from polybit.kernels.reference.pages import write_kv
from polybit.kernels.reference.rope import rope

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

NAME = "reference"
DEVICES = frozenset({"cpu", "cuda", "mps"})
KEPT_BYTES = 0
READS_PACKED: frozenset[str] = frozenset()
READS_QUANTIZED_PAGES = False
HOLDS_SCORES = True
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
