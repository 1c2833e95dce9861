"""Which backends exist, and which one serves a device."""

import logging
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from polybit.errors import KernelError
from polybit.kernels import reference
from polybit.kernels.protocol import Backend

log = logging.getLogger(__name__)


OLDEST_TRITON = (3, 5)
OLDEST_CARD = (7, 5)  # for CUDA C++


def _reference() -> Backend:
    return reference


def _cpu() -> Backend:
    from polybit.kernels import cpu
    from polybit.kernels.cpu.tile_code import check_processor

    check_processor()
    return cpu


def _triton() -> Backend:
    import triton as compiler

    if tuple(map(int, compiler.__version__.split(".")[:2])) < OLDEST_TRITON:
        raise ImportError(f"Triton {compiler.__version__} is too old, 3.5 is the oldest that serves; update torch")
    from polybit.kernels import triton

    return triton


def _cuda() -> Backend:
    if torch.version.hip is not None:
        raise ImportError("this torch is built for AMD cards, and the backend is for NVIDIA's")
    _triton()  # whose operations it has beside its own
    from polybit.kernels import cuda

    return cuda


LOADERS: Mapping[str, Callable[[], Backend]] = MappingProxyType(
    {"reference": _reference, "cpu": _cpu, "triton": _triton, "cuda": _cuda}
)
BACKENDS = tuple(LOADERS)
PREFERENCE = MappingProxyType({"cuda": ("cuda", "triton"), "cpu": ("cpu",)})  # by type of device
HOW_TO_GET = MappingProxyType(
    {
        "cpu": f"{sys.executable} -m pip install 'polybit[cpu]'",
        "triton": f"CUDA builds of torch for Linux bring triton, else: {sys.executable} -m pip install triton",
        "cuda": f"{sys.executable} -m pip install 'polybit[cuda]'",
    }
)


def load_backend(name: str) -> Backend:
    """The backend of that name. Raises KernelError where it does not exist or lacks its compiler."""
    if name not in LOADERS:
        raise KernelError(f"backend {name!r} does not exist; choose one of: {', '.join(BACKENDS)}")
    try:
        return LOADERS[name]()
    except ImportError as error:
        missing = error.name if error.name in HOW_TO_GET else name
        raise KernelError(f"backend {name!r} cannot be loaded ({error}); {HOW_TO_GET[missing or name]}") from error


def get_backend(name: str | None, device: torch.device) -> Backend:
    """The backend of that name, else the fastest for the device.

    Raises KernelError where the named one cannot be loaded or does not serve the device.
    """
    if name is None:
        return _default(device)
    backend = load_backend(name)
    if device.type not in backend.DEVICES:
        raise KernelError(
            f"backend {name!r} runs on {', '.join(sorted(backend.DEVICES))}, but the device is {device}; "
            "leave the backend out to take the best for it"
        )
    return backend


def _default(device: torch.device) -> Backend:
    for name in PREFERENCE.get(device.type, ()):
        try:
            backend = load_backend(name)
        except KernelError as error:
            if torch.version.hip is None or name != "cuda":
                log.warning("%s; until then a slower backend serves", error)
            continue
        if name == "cuda" and _capability(device) < OLDEST_CARD:
            log.warning("%s is too old for backend 'cuda', which needs compute capability %d.%d", device, *OLDEST_CARD)
            continue
        return backend
    return reference


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else OLDEST_CARD
