"""How an opened folder is loaded on a machine: type of activations, backend, weights packed or not, and the plan."""

import logging
from dataclasses import dataclass

import torch

from polybit.amounts import gibibytes
from polybit.kernels.pages import FULL, KVBits, read_bits
from polybit.kernels.protocol import Backend
from polybit.kernels.registry import get_backend
from polybit.model.device import choose_dtype
from polybit.model.footprint import Footprint, footprint_of, is_quantized, quantized_kinds
from polybit.model.machine import this_machine
from polybit.model.plan import Machine, Plan, plan_memory
from polybit.model.source import ModelSource

log = logging.getLogger(__name__)

UNPACK_SHARE = 0.5  # matrices are held dequantized where they take at most this share of the free memory


@dataclass(frozen=True)
class Setup:
    plan: Plan
    sizes: Footprint
    dtype: torch.dtype  # of activations
    backend: Backend
    unpacked: bool  # quantized matrices are held dequantized
    cache: KVBits  # of keys and values


def set_up(source: ModelSource, cache_tokens: int, machine: Machine | None = None, fewest: int | None = None) -> Setup:
    """For `machine`, None: this one; `fewest`: as of plan_memory.

    Raises ConfigError, KernelError, or OutOfMemory where it cannot work.
    """
    options = source.options
    machine = machine or this_machine(options)
    device = machine.budgets[0].device
    dtype, backend = choose_dtype(options.dtype, device), get_backend(options.backend, device)
    unpacked = _holds_unpacked(source, dtype, backend, machine) if options.unpacked is None else options.unpacked
    sizes = footprint_of(source, dtype, unpacked, backend)
    plan = plan_memory(sizes, machine, cache_tokens, options.offload, fewest, str(source.folder))
    return Setup(plan, sizes, dtype, backend, unpacked, read_bits(options.cache))


def tell(setup: Setup, source: ModelSource) -> None:
    """Say in the log what was decided."""
    plan = setup.plan
    held = "are held dequantized" if setup.unpacked else "are held packed"
    log.info("weights %s", held if is_quantized(source) else "are not quantized")
    if setup.cache != FULL and not setup.backend.READS_QUANTIZED_PAGES:
        log.warning(
            "backend '%s' dequantizes the quantized cache at every step: it saves memory and takes time; "
            "cache fp16 is faster where it fits",
            setup.backend.NAME,
        )
    for share in plan.shares:
        log.info(
            "%s: layers %d-%d, weights %s, cache %s, work space %s, of %s free",
            share.device,
            share.blocks.start,
            share.blocks.stop - 1,
            *map(gibibytes, (share.weights, share.cache, share.scratch, share.free)),
        )
    log.info("token embedding on %s", "cpu (RAM)" if plan.table.type == "cpu" else plan.table)
    if plan.offloaded:
        log.warning("%d of %d layers (%s) live in RAM and are copied to %s for every step, which is slow",
                    len(plan.offloaded), len(source.spec.blocks), gibibytes(plan.ram),
                    plan.shares[-1].device)  # fmt: skip


def _holds_unpacked(source: ModelSource, dtype: torch.dtype, backend: Backend, machine: Machine) -> bool:
    """Where packed matrices would be dequantized at each use, and there is room for them."""
    if quantized_kinds(source) <= backend.READS_PACKED:
        return False
    weights = footprint_of(source, dtype, unpacked=True, backend=backend).weights
    return weights <= UNPACK_SHARE * machine.budgets[0].free
