"""Which device and activation type a model gets. The rule is short, and its outcome is logged."""

import logging
from contextlib import AbstractContextManager, nullcontext

import psutil
import torch

from polybit import env
from polybit.errors import ConfigError, KernelError

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """The named device, else POLYBIT_DEVICE, else CUDA if there is one, else the CPU (Apple: ask for `mps` by name)."""
    chosen = name or env.device()
    asked_by = "device" if name else "POLYBIT_DEVICE"
    if chosen is None:
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(chosen)
    except RuntimeError:
        raise KernelError(f"{asked_by} {chosen!r} is not one that torch knows; use cpu, cuda, cuda:1 or mps") from None
    _check_present(device)
    log.info("device: %s", describe(device))
    return device


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """Several of one kind, as in `cuda:0,cuda:1`. ConfigError: of different kinds, one twice, or one without a name."""
    split = [name.strip() for name in names.split(",")]
    if not all(split):
        raise ConfigError(f"devices {names!r} lacks a name between commas; give them as in cuda:0,cuda:1")
    found = [choose_device(name) for name in split]
    if len({device.type for device in found}) > 1:
        raise ConfigError(f"devices {names!r} are of different kinds, which round differently; name GPUs of one kind")
    numbers = [device.index or 0 for device in found]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"devices {names!r} names one of them twice; give each once, as in cuda:0,cuda:1")
    if len(found) == 1:
        return tuple(found)
    # A device without its number is whichever is current, and in every thread another one is.
    return tuple(torch.device(device.type, number) for device, number in zip(found, numbers, strict=True))


def use_threads(count: int | None) -> None:
    """Threads of torch on the CPU, and of kernels, which follow it. None: no more than there are physical cores."""
    if count is not None and count < 1:
        raise ConfigError(f"threads is {count}, expected at least 1")
    most, cores = psutil.cpu_count(logical=False) or torch.get_num_threads(), psutil.cpu_count(logical=True) or 1
    if count is not None and count > cores:
        log.warning("threads is %d, on %d cores: they wait for each other; %d are faster", count, cores, cores)
    torch.set_num_threads(count or min(torch.get_num_threads(), most))


def _check_present(device: torch.device) -> None:
    match device.type:
        case "cpu":
            _check_number(device, 1)
        case "cuda":
            present = torch.cuda.device_count()
            if not present:
                raise KernelError(
                    f"device {device} was asked for, but torch {torch.__version__} sees no CUDA devices; "
                    "use --device cpu (device='cpu'), or install a CUDA build of torch and a driver"
                )
            _check_number(device, present)
        case "mps":
            if not torch.backends.mps.is_available():
                raise KernelError(
                    f"device {device} was asked for, but this torch sees no Apple GPU; use --device cpu (device='cpu')"
                )
            _check_number(device, 1)
        case other:
            raise KernelError(f"device type {other!r} is not supported; use cpu, cuda, cuda:1 or mps")


def _check_number(device: torch.device, present: int) -> None:
    if (device.index or 0) >= present:
        there = device.type if present == 1 else ", ".join(f"{device.type}:{i}" for i in range(present))
        raise KernelError(f"device {device} was asked for, but there is only {there}; use that")


def current(device: torch.device) -> AbstractContextManager[object]:
    """Kernels that are launched inside run on `device`, wherever torch would launch them otherwise."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def describe(device: torch.device) -> str:
    """For people: `cuda:0 (NVIDIA GeForce RTX 4090)`, `cpu (8 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The named type, else float32 on the CPU (which has no fast half arithmetic) and float16 elsewhere."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; choose one of: {', '.join(DTYPES)}")
    return DTYPES[name]
