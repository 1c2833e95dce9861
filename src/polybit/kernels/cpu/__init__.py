"""Kernels for CPUs in Numba, compiled at first use and cached on disk. Needs the extra `polybit[cpu]`."""

from polybit.kernels.cpu.cache import keep_compiled
from polybit.kernels.cpu.compiling import compile_without_collection

keep_compiled()  # before anything is declared to be compiled
compile_without_collection()

from polybit.kernels.cpu.activations import gated_activate
from polybit.kernels.cpu.attention import attention
from polybit.kernels.cpu.decode_attention import decode_attention
from polybit.kernels.cpu.matrices import dequantize, exl2_bytes, gated_matmul, join, matmul, norm_matmul, prepare_exl2
from polybit.kernels.cpu.norms import rms_norm
from polybit.kernels.cpu.pages import write_kv
from polybit.kernels.cpu.rope import rope
from polybit.kernels.reference import activate, embedding, layer_norm, prepare_dense, prepare_gptq

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

NAME = "cpu"
DEVICES = frozenset({"cpu"})
KEPT_BYTES = 0
READS_PACKED = frozenset({"exl2"})
READS_QUANTIZED_PAGES = True
HOLDS_SCORES = True
NATIVE_OPS = frozenset(
    {
        "attention",
        "decode_attention",
        "dequantize",
        "gated_activate",
        "gated_matmul",
        "matmul",
        "norm_matmul",
        "rms_norm",
        "rope",
        "write_kv",
    }
)
