"""Low-bit LLM inference and EXL2 quantization on any machine that runs torch.

import polybit

engine = polybit.load("model-4.0bpw")
print(engine.generate("Once upon a time", max_tokens=64).text)

polybit.convert("SmolLM2-135M-Instruct", "out", bits=4.0)
"""

import gc
import os
from importlib import import_module
from typing import TYPE_CHECKING

from polybit.version import __version__

# Before torch loads OpenMP: by default its idle threads spin, and a core shared with any other program then slows every
# operation down (decoding on two cores, one of them busy: 1.3 tokens/s; 12.3 with threads that sleep).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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

if TYPE_CHECKING:
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
    from polybit.generator import Completion, Engine, SamplingParams, Stream
    from polybit.generator.load import load
    from polybit.model.options import LoadOptions
    from polybit.progress import progress_bar
    from polybit.quantizer.convert import ConvertOptions, ConvertProgress, ConvertResult, convert
else:
    HOMES = ("errors", "generator", "generator.load", "model.options", "progress", "quantizer.convert")

    def __getattr__(name: str) -> object:
        """What is public is imported when it is first asked for, and torch with it, which takes a second."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        collects = gc.isenabled()
        gc.disable()  # imports make hundreds of thousands of objects and no garbage
        try:
            modules = [import_module(f"{__name__}.{home}") for home in HOMES]
        finally:
            if collects:
                gc.enable()
        globals().update({each: vars(module)[each] for module in modules for each in __all__ if each in vars(module)})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
