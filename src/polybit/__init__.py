"""Low-bit LLM inference and EXL2 quantization on any machine that runs torch."""
