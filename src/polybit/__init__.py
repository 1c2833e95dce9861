"""Low-bit LLM inference and EXL2 quantization on any machine that runs torch.

import polybit

engine = polybit.load("model-4.0bpw")
print(engine.generate("Once upon a time", max_tokens=64).text)

polybit.convert("SmolLM2-135M-Instruct", "out", bits=4.0)
"""

import gc
import os

# Imports make hundreds of thousands of objects and no garbage, for which Python looks through them again and again.
_collects = gc.isenabled()
gc.disable()

# Before torch loads OpenMP: by default its idle threads spin, and a core shared with any other program then slows every
# operation down (decoding on two cores, one of them busy: 1.3 tokens/s; 12.3 with threads that sleep).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    from polybit.errors import (
        CalibrationError,
        ConfigError,
        FormatError,
        JobError,
        KernelError,
        OutOfMemory,
        PolybitError,
        RequestError,
        SelfTestFailed,
        UnsupportedModel,
    )
    from polybit.generator import Completion, Engine, SamplingParams, Stream, load
    from polybit.model.options import LoadOptions
    from polybit.progress import progress_bar
    from polybit.quantizer.convert import ConvertOptions, ConvertProgress, ConvertResult, convert
    from polybit.version import __version__
finally:
    if _collects:
        gc.enable()

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
    "SelfTestFailed",
    "Stream",
    "UnsupportedModel",
    "__version__",
    "convert",
    "load",
    "progress_bar",
]
