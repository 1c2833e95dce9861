"""Which card, driver, compilers and source tree a result is about."""

import re
import subprocess
from typing import Any

import torch

from polybit.bench.report import source_commit

ABOUT = ("commit", "card", "driver", "torch", "triton", "cuda_core")


class Unfit(Exception):
    """No result can come of this: why, in one line."""


def about_this_card(commit: str | None) -> dict[str, Any]:
    """Unfit: there is no card, or a package whose absence would make tests skip themselves."""
    if not torch.cuda.is_available():
        raise Unfit(f"torch {torch.__version__} sees no CUDA device; tests of a card need one, and its driver")
    try:
        import cuda.core
        import triton
    except ImportError as error:
        raise Unfit(f"{error}; without it tests of the kernels skip themselves: pip install 'polybit[cuda]'") from error
    versions = (torch.__version__, triton.__version__, cuda.core.__version__)
    return dict(
        zip(ABOUT, (commit or source_commit(), torch.cuda.get_device_name(0), driver(), *versions), strict=True)
    )


def driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no nvidia-smi)"


def card_name(name: str) -> str:
    """For a file: `NVIDIA H100 80GB HBM3` -> `h100-80gb-hbm3`."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower().removeprefix("nvidia")))
