"""What an EXL2 folder holds beside its weights: the patched config.json, and the source's other files as they are."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polybit.errors import FormatError
from polybit.format.files import atomic_write_json, replacing

# Weights of any kind, and indices of weight files, which would be stale beside new ones.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".index.json")


def patched_config(
    config: Mapping[str, Any], bits: float, head_bits: int, calibration: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """The source's config.json with what was done to it; `calibration` has at least rows, length and dataset.

    Whatever quantization the source declared is replaced, for its tensors are gone.
    """
    record = {
        "quant_method": "exl2",
        "version": version,
        "bits": float(bits),
        "head_bits": head_bits,
        "calibration": dict(calibration),
    }
    return {**config, "quantization_config": record}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """config.json in the form that EXL2 folders have it: four spaces, ASCII. FormatError: it cannot be written."""
    atomic_write_json(folder / "config.json", config, indent=4, ascii_only=True)


def copy_companions(source: Path, target: Path) -> list[Path]:
    """Copy every file at the top of `source` but weights and config.json into `target`: tokenizer, templates, licence.

    Returns what was written. FormatError: a file cannot be read or written.
    """
    try:
        found = sorted(path for path in source.iterdir() if _is_companion(path))
    except OSError as error:
        raise FormatError(f"{source} cannot be listed: {error.strerror}; check the folder's permissions") from error
    return [_copy(path, target / path.name) for path in found]


def _is_companion(path: Path) -> bool:
    hidden_or_config = path.name.startswith(".") or path.name == "config.json"
    return path.is_file() and not hidden_or_config and not path.name.lower().endswith(WEIGHT_SUFFIXES)


def _copy(source: Path, target: Path) -> Path:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return target
