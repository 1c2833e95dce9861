"""Which devices a plan may use, and how much of each: what is here now, or cards that somebody thinks of buying."""

import math
from collections.abc import Sequence

import psutil
import torch

from polybit import env
from polybit.errors import ConfigError, KernelError
from polybit.model.device import choose_device, use_threads
from polybit.model.options import LoadOptions
from polybit.model.plan import GIB, Budget, Machine

AUTO = "auto"
CONTEXT_BYTES = GIB // 2  # of a card that is not here: what CUDA itself takes of it


def this_machine(options: LoadOptions) -> Machine:
    """ConfigError: options that contradict each other. KernelError: a device that is not here."""
    _check_combination(options)
    use_threads(options.threads)
    if options.gpu_split is None:
        return Machine(_default_budgets(options), free_ram())
    limits = parse_split(options.gpu_split)
    return Machine(_split_budgets(limits), free_ram())


def imagined_machine(split: str) -> Machine:
    """Cards of the sizes that `split` lists, none of which need be here, in a computer with RAM enough."""
    limits = parse_split(split)
    if limits is None:
        raise ConfigError("gpu_split=auto plans for the GPUs that are here; list sizes to plan for others: 24 or 10,22")
    cards = [_gpu_budget(i, limit, max(0, int(limit * GIB) - CONTEXT_BYTES)) for i, limit in enumerate(limits) if limit]
    return Machine(tuple(cards), ram=1 << 62)


def without(machine: Machine, reserves: Sequence[int]) -> Machine:
    """The machine with so many bytes of each device left alone; the last number counts for all further ones."""
    last = len(reserves) - 1
    budgets = enumerate(machine.budgets)
    return Machine(tuple(Budget(b.device, max(0, b.free - reserves[min(i, last)])) for i, b in budgets), machine.ram)


def parse_split(text: str) -> tuple[float, ...] | None:
    """GiB for each GPU; None for auto. ConfigError: anything else."""
    if text.strip() == AUTO:
        return None
    try:
        limits = tuple(float(part) for part in text.split(","))
    except ValueError:
        limits = ()
    if not limits or not all(math.isfinite(limit) and limit >= 0 for limit in limits) or not any(limits):
        raise ConfigError(f"gpu_split is {text!r:.60}, expected auto or GiB for each GPU, as 10,22 (0 leaves one out)")
    return limits


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated now: of the card for CUDA, of the machine for the CPU and Apple GPUs."""
    if device.type != "cuda":
        return free_ram()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, from models let go
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def free_ram() -> int:
    return int(psutil.virtual_memory().available)


def _check_combination(options: LoadOptions) -> None:
    device, split = options.device, options.gpu_split
    if split is not None and device not in (None, "cuda"):
        raise ConfigError(f"device is {device} and gpu_split {split}, which names devices too; give one of them")


def _default_budgets(options: LoadOptions) -> tuple[Budget, ...]:
    """The device that is named, else every GPU."""
    chosen = choose_device(options.device)
    named = options.device or env.device()
    if chosen.type != "cuda":
        if options.offload:
            raise ConfigError(f"offload keeps layers in RAM for a GPU, but the device is {chosen}; leave it out")
        return (Budget(chosen, free_bytes(chosen)),)
    if named is not None:
        return (_gpu_budget(chosen.index or 0, None, free_bytes(chosen)),)
    return _split_budgets(None)


def _split_budgets(limits: Sequence[float] | None) -> tuple[Budget, ...]:
    present = torch.cuda.device_count()
    if not present or (limits is not None and len(limits) > present):
        asked = "the GPUs" if limits is None else f"{len(limits)} GPUs"
        raise KernelError(f"gpu_split asks for {asked}, but torch {torch.__version__} sees {present}")
    numbers = range(present) if limits is None else [i for i, limit in enumerate(limits) if limit]
    return tuple(_gpu_budget(i, limits[i] if limits else None, free_bytes(torch.device("cuda", i))) for i in numbers)


def _gpu_budget(index: int, limit: float | None, free: int) -> Budget:
    return Budget(torch.device("cuda", index), free if limit is None else min(free, int(limit * GIB)))
