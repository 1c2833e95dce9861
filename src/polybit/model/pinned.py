"""Memory of the machine that a GPU reads by itself: copies from it overlap with computing.

Without CUDA it is plain memory.
"""

import mmap
import weakref

import torch
from torch import Tensor

from polybit.amounts import gibibytes
from polybit.errors import OutOfMemory

PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU


def pinned_bytes(num_bytes: int) -> Tensor:
    """[num_bytes] uint8, exactly that much: torch's own pinned allocator rounds up to a power of two. OutOfMemory."""
    try:
        memory = mmap.mmap(-1, num_bytes)
    except OSError as error:
        raise _refused(num_bytes, str(error)) from None
    buffer = torch.frombuffer(memory, dtype=torch.uint8)
    if torch.cuda.is_available():
        _register(memory, buffer)
    return buffer


def _register(memory: mmap.mmap, buffer: Tensor) -> None:
    """Pinned for as long as the memory lives, which the buffer's storage keeps."""
    cuda, start = torch.cuda.cudart(), buffer.data_ptr()
    status = int(cuda.cudaHostRegister(start, buffer.nbytes, PORTABLE))
    if status != 0:
        raise _refused(buffer.nbytes, f"CUDA error {status}")
    weakref.finalize(memory, cuda.cudaHostUnregister, start).atexit = False


def _refused(num_bytes: int, reason: str) -> OutOfMemory:
    return OutOfMemory(
        f"{gibibytes(num_bytes)} of RAM cannot be pinned for the GPU ({reason}); "
        "close other programs, raise what may be locked, or offload less by a smaller --cache-tokens (cache_tokens)"
    )


def seen_by(device: torch.device, pinned: Tensor) -> Tensor:
    """A pinned table [rows, width] as a tensor of the GPU, which reads over the bus what it uses of it.

    So rows are looked up without a copy on the GPU, and without the processor having to know which.
    """
    with torch.cuda.device(device):
        seen = torch.as_tensor(_CudaArray(pinned.view(torch.uint8)), device=device)
    if seen.data_ptr() != pinned.data_ptr():
        raise RuntimeError(f"torch copied a pinned table to {device} instead of sharing it")
    return seen.view(pinned.dtype)


class _CudaArray:
    """Bytes [rows, width] as CUDA's array interface describes them."""

    def __init__(self, pinned: Tensor) -> None:
        self._pinned = pinned  # the tensor that is made of this keeps this, and so the memory
        self.__cuda_array_interface__ = {
            "shape": tuple(pinned.shape),
            "typestr": "|u1",
            "data": (pinned.data_ptr(), False),
            "version": 3,
        }
