"""What was measured, as data, and which source tree measured it."""

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from polybit import version
from polybit.bench.first_use import FirstUse


@dataclass(frozen=True)
class Row:
    """`context`: tokens before the step when decoding, tokens of the prompt in a prefill.

    `fraction`: of what the device could do, as bytes read for a step of decoding, as operations for a prefill.
    """

    batch: int
    context: int
    tok_per_s: float  # of all sequences together
    ms: float
    fraction: float


@dataclass(frozen=True)
class Vram:
    """Bytes; peaks are from before loading to after a full cache of `cache_tokens`."""

    weights: int  # in tensors once the model was loaded
    allocated: int  # by torch, in tensors, at its peak
    reserved: int  # by torch, with what it keeps for later, at its peak
    used: int  # of the device, by everyone, in the end
    cache_tokens: int

    def to_json(self) -> dict[str, Any]:
        sizes = asdict(self)
        tokens = sizes.pop("cache_tokens")
        return {f"{name}_gb": size / 1e9 for name, size in sizes.items()} | {"cache_tokens": tokens}


@dataclass(frozen=True)
class Report:
    model: str
    bpw: float
    backend: str
    device: str
    decode: tuple[Row, ...]
    prefill: tuple[Row, ...]
    load_s: float
    vram: Vram | None  # None: the device has no memory of its own
    first_use: FirstUse | None  # None: not asked for
    read_gb_s: float
    matmul_tflops: float

    def to_json(self) -> dict[str, Any]:
        return {
            "decode": [asdict(row) for row in self.decode],
            "prefill": [asdict(row) for row in self.prefill],
            "load_s": self.load_s,
            "vram_gb": None if self.vram is None else self.vram.used / 1e9,
            "vram": None if self.vram is None else self.vram.to_json(),
            "first_use_s": None if self.first_use is None else self.first_use.empty_cache,
            "first_use_cached_s": None if self.first_use is None else self.first_use.full_cache,
            "read_gb_s": self.read_gb_s,
            "matmul_tflops": self.matmul_tflops,
            "device": self.device,
            "commit": source_commit(),
            "model": self.model,
            "bpw": self.bpw,
            "backend": self.backend,
            "torch": torch.__version__,
        }


def source_commit() -> str:
    """The git commit of the tree that this program comes from, `-dirty` if changed since; else the version."""
    root = Path(version.__file__).parents[2]
    if not (root / ".git").exists():
        return version.__version__
    command = ("git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a tree that is not its user's
        return version.__version__
