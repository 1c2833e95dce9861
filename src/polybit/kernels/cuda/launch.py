"""Starts compiled kernels on torch's current stream, so that graphs capture them like torch's own."""

from functools import cache
from typing import Any

import cuda.core as core
import numpy as np
import torch
from cuda.bindings import driver
from torch import Tensor

from polybit.errors import KernelError
from polybit.kernels.cuda.compile import Build, compiled

Argument = Tensor | int | np.generic | None


class Kernel:
    """One kernel on one device. It may use all the shared memory that the device has."""

    def __init__(self, build: Build, name: str, device: torch.device) -> None:
        self._device = torch.empty(0, device=device).get_device()
        self._kernel = compiled(build, name, self._device)
        self._can_overlap = torch.cuda.get_device_capability(self._device) >= (9, 0)
        _allow_shared(self._kernel, self._device)

    @staticmethod
    @cache
    def get(build: Build, name: str, device: torch.device) -> "Kernel":
        """Compiled at the first call. KernelError where that is not possible."""
        return Kernel(build, name, device)

    def launch(
        self, grid: tuple[int, ...], threads: int, *arguments: Argument, shared_bytes: int = 0, overlap: bool = False
    ) -> None:
        """Tensors go as pointers, None as a null pointer, plain integers as unsigned ones of 32 bits.

        overlap: the kernel waits for the launch before it itself (`overlap.cuh`), and may start earlier.
        """
        config = _config(grid, threads, shared_bytes, overlap and self._can_overlap)
        stream = _stream(self._device, torch.cuda.current_stream(self._device).cuda_stream)
        core.launch(stream, config, self._kernel, *map(_argument, arguments))


def _argument(value: Argument) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if value is None:
        return 0
    return value if isinstance(value, np.generic) else _unsigned(value)


_unsigned = cache(np.uint32)  # to make one takes longer than to find it


@cache
def _config(grid: tuple[int, ...], threads: int, shared_bytes: int, overlap: bool) -> Any:
    return core.LaunchConfig(
        grid=grid, block=threads, shmem_size=shared_bytes, programmatic_stream_serialization=overlap
    )


@cache
def _stream(device: int, handle: int) -> Any:
    """Every device has a default stream, of the same handle."""
    return core.Stream.from_handle(handle)


@cache
def shared_memory(device: int) -> int:
    """Bytes that one thread block may have at most."""
    return int(core.Device(device).properties.max_shared_memory_per_block_optin)


def _allow_shared(kernel: Any, device: int) -> None:
    """Kernels get 48 KB of shared memory unless they are told that they may have more."""
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    limit = shared_memory(device)
    (status,) = driver.cuKernelSetAttribute(
        attribute,
        limit - kernel.attributes.shared_size_bytes,
        driver.CUkernel(int(kernel.handle)),
        driver.CUdevice(device),
    )
    if status != driver.CUresult.CUDA_SUCCESS:
        raise KernelError(f"the CUDA driver refused {limit} bytes of shared memory ({status}); update the driver")
