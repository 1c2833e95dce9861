"""Kernels in Triton for NVIDIA and AMD GPUs. Needs the package `triton`, which torch's GPU builds for Linux bring."""

from triton import knobs

from polybit.kernels.reference import join, prepare_dense
from polybit.kernels.triton.activations import activate, gated_activate
from polybit.kernels.triton.attention import attention
from polybit.kernels.triton.embedding import embedding
from polybit.kernels.triton.matrices import (
    dequantize,
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

NAME = "triton"
DEVICES = frozenset({"cuda", "cpu"} if knobs.runtime.interpret else {"cuda"})
READS_PACKED = frozenset({"exl2", "gptq"})
NATIVE_OPS = frozenset(
    {
        "activate",
        "attention",
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
