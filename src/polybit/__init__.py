"""Low-bit LLM inference and EXL2 quantization on any machine that runs torch.

import polybit

engine = polybit.load("model-4.0bpw")
print(engine.generate("Once upon a time", max_tokens=64).text)

polybit.convert("SmolLM2-135M-Instruct", "out", bits=4.0)
"""

from polybit.errors import (
    CalibrationError,
    ConfigError,
    FormatError,
    JobError,
    KernelError,
    OutOfMemory,
    PolybitError,
    RequestError,
    UnsupportedModel,
)
from polybit.generator import Completion, Engine, SamplingParams, Stream, load
from polybit.model.options import LoadOptions
from polybit.quantizer.convert import ConvertOptions, ConvertProgress, ConvertResult, convert
from polybit.version import __version__

__all__ = [
    "CalibrationError",
    "Completion",
    "ConfigError",
    "ConvertOptions",
    "ConvertProgress",
    "ConvertResult",
    "Engine",
    "FormatError",
    "JobError",
    "KernelError",
    "LoadOptions",
    "OutOfMemory",
    "PolybitError",
    "RequestError",
    "SamplingParams",
    "Stream",
    "UnsupportedModel",
    "__version__",
    "convert",
    "load",
]
