"""CUDA C++ files of this folder to kernels: by NVRTC at first use, then from a cache by source, options and card.

Needs the extra `polybit[cuda]` (cuda-core, which brings NVRTC as a wheel) and a driver; no toolkit, no compiler.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cuda.core as core  # absent: the registry says how to get it
import torch
from cuda.bindings import nvrtc
from cuda.core._utils.cuda_utils import CUDAError  # no release from 1.0 to 1.2 exports what compiling and loading raise

from polybit import env
from polybit.errors import KernelError
from polybit.kernels.registry import OLDEST_CARD

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
INSTALL = "pip install 'polybit[cuda]'"


@dataclass(frozen=True)
class Build:
    """One compilation: a source file and its macros."""

    file: str
    macros: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, file: str, macros: Mapping[str, int]) -> "Build":
        return cls(file, tuple(sorted(macros.items())))


def compiled(build: Build, name: str, device: int) -> Any:
    """The kernel `name` (a cuda.core Kernel) for that CUDA device. KernelError says what is missing."""
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CARD:
        found = f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}"
        needed = f"{OLDEST_CARD[0]}.{OLDEST_CARD[1]}"
        raise KernelError(f"{found}, but the CUDA kernels need {needed}; use backend='reference'")
    code = cached_cubin(build, architecture(capability))
    try:
        with torch.cuda.device(device):
            return core.ObjectCode.from_cubin(code).get_kernel(name)
    except (CUDAError, RuntimeError) as error:
        raise KernelError(
            f"the driver cannot load {build.file} ({str(error).splitlines()[0]}): it is older than the compiler; "
            "update it, or pip install 'polybit[cuda12]' in place of 'polybit[cuda]'"
        ) from error


def architecture(capability: tuple[int, int]) -> str:
    """What NVRTC calls it. Hopper's warpgroups are there for code that runs on no other card."""
    name = f"sm_{capability[0]}{capability[1]}"
    return f"{name}a" if capability == (9, 0) else name


def cached_cubin(build: Build, architecture: str) -> bytes:
    """From the cache, or compiled and kept there."""
    path = env.cache_dir() / "cuda" / f"{fingerprint(build, architecture)}.cubin"
    if path.exists():
        return path.read_bytes()
    started = time.perf_counter()
    code = compile_cubin(build, architecture)
    log.info("compiled %s for %s in %.1f s", build.file, architecture, time.perf_counter() - started)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:  # of its own: several processes may start at once
            Path(folder, path.name).write_bytes(code)
            Path(folder, path.name).replace(path)
    except OSError as error:
        log.warning("%s cannot be written (%s): kernels will be compiled again next time", path, error)
    return code


def fingerprint(build: Build, architecture: str) -> str:
    compiler = nvrtc.nvrtcVersion()[1:]  # a driver may know the code of one and not of another
    digest = hashlib.sha256(f"{architecture} {build.macros} {compiler}".encode())
    for path in (FOLDER / build.file, *sorted(FOLDER.glob("*.cuh"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def compile_cubin(build: Build, architecture: str) -> bytes:
    """Machine code for e.g. `sm_90`; works without a card."""
    macros = [(name, str(value)) for name, value in build.macros]
    options = core.ProgramOptions(std="c++17", arch=architecture, include_path=str(FOLDER), define_macro=macros or None)
    try:
        program = core.Program((FOLDER / build.file).read_text(encoding="utf-8"), "c++", options)
        return bytes(program.compile("cubin").code)
    except (CUDAError, RuntimeError) as error:
        told = " ".join(line.strip("\0 ") for line in str(error).splitlines() if line.strip("\0 "))
        raise KernelError(
            f"{build.file} does not compile for {architecture} ({told}); {INSTALL} --upgrade, or use backend='triton'"
        ) from error
