"""Low-bit LLM inference and EXL2 quantization on any machine that runs torch."""

__version__ = "0.1.0"
