"""Sums that several programs share: the last of them to arrive adds up the parts, always in the same order."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SUMS = 1 << 16  # sums that one launch may have


@triton.jit
def arrives_last(counter, num_programs):
    """Whether this program is the last of `num_programs` to come here; then it sees what the others stored.

    The counter is zero before and after. Call it where all threads of the program pass.
    """
    tl.debug_barrier()  # every thread has stored its part before one of them says so
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_programs - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return last


@triton.constexpr_function
def num_at_once(elements):
    """How many parts of so many elements a program should have on their way: what its registers hold."""
    return max(1, 8192 // elements)


@functools.cache
def counters(device: torch.device) -> Tensor:
    """[MAX_SUMS] int32, all zero between launches. Launches that use them must follow one another on one stream."""
    return torch.zeros(MAX_SUMS, dtype=torch.int32, device=device)


@functools.cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of the interpreter, a few."""
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether a launch may start before the one before it has ended (programmatic dependent launch)."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have."""
    if device.type == "cpu":
        return 1 << 16
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 1 << 16)
