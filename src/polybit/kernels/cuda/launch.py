"""Starts compiled kernels on torch's current stream, so that graphs capture them like torch's own."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polybit.errors import KernelError
from polybit.kernels.cuda.compile import Build, import_core, kernel

Argument = Tensor | int | np.generic | None


class Kernel:
    """One kernel on one device, with the dynamic shared memory that it may use."""

    def __init__(self, build: Build, name: str, device: int, shared_bytes: int = 0) -> None:
        self._core = import_core()
        self._kernel = kernel(build, name, device)
        self._device = device
        self._shared_bytes = shared_bytes
        if shared_bytes > 48 << 10:
            _allow_shared(self._kernel, device)

    def launch(self, grid: tuple[int, ...], threads: int, *arguments: Argument, overlap: bool = False) -> None:
        """Tensors go as pointers, None as a null pointer, integers as unsigned of 32 bits.

        overlap: may start before the previous launch ends; the kernel waits itself (programmatic dependent launch).
        """
        config = _config(grid, threads, self._shared_bytes, overlap)
        stream = _stream(torch.cuda.current_stream(self._device).cuda_stream)
        self._core.launch(stream, config, self._kernel, *map(_argument, arguments))


def _argument(value: Argument) -> Any:
    if value is None:
        return 0
    if isinstance(value, Tensor):
        return value.data_ptr()
    return value if isinstance(value, np.generic) else np.uint32(value)


@cache
def _config(grid: tuple[int, ...], threads: int, shared_bytes: int, overlap: bool) -> Any:
    core = import_core()
    overlapping = {"programmatic_stream_serialization": True} if overlap else {}
    return core.LaunchConfig(grid=grid, block=threads, shmem_size=shared_bytes, **overlapping)


@cache
def _stream(handle: int) -> Any:
    return import_core().Stream.from_handle(handle)


@cache
def _allow_shared(compiled: Any, device: int) -> None:
    """Let the kernel have as much shared memory as the device has beside what it declares itself."""
    from cuda.bindings import driver

    attributes = driver.CUfunction_attribute
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    wanted = {
        attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: limit - compiled.attributes.shared_size_bytes,
        attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: 100,  # per cent: room for the next launch too
    }
    for attribute, value in wanted.items():
        kernel, place = driver.CUkernel(int(compiled.handle)), driver.CUdevice(device)
        (status,) = driver.cuKernelSetAttribute(attribute, value, kernel, place)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise KernelError(f"the CUDA driver refused {attribute.name} = {value} ({status}); update the driver")
