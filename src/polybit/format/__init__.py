"""Bytes on disk <-> tensors: safetensors folders, EXL2, GPTQ and dense matrices, GGUF as a source, safe writing."""
