"""What the device itself can do, measured: bytes read a second, operations of a large product a second."""

from collections.abc import Callable

import torch

from polybit.bench.timing import median_seconds
from polybit.model.machine import free_bytes

GPU_BUFFER = 1 << 31  # bytes, some forty times the largest second-level cache
CPU_BUFFER = 1 << 30
CPU_SIDE, GPU_SIDE = 2048, 8192  # of a square product
GPU_CALLS = 8  # for one measurement, so that starting and waiting do not count


def read_gb_s(device: torch.device) -> float:
    """Gigabytes a second, read only: the best of two ways to reduce a buffer that no cache holds."""
    wanted = CPU_BUFFER if device.type == "cpu" else GPU_BUFFER
    columns = 1 << 12
    rows = min(wanted, free_bytes(device) // 4) // (4 * columns)
    buffer = torch.ones(rows, columns, device=device)
    ones = torch.ones(columns, device=device)
    ways = (buffer.sum, lambda: buffer @ ones)
    return max(buffer.nbytes / _call_seconds(way, device) for way in ways) / 1e9


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Of a square product of random numbers in `dtype`, which a card slows down for: zeros would be faster."""
    side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _call_seconds(lambda: a @ b, device) / 1e12


def _call_seconds(action: Callable[[], object], device: torch.device) -> float:
    count = 1 if device.type == "cpu" else GPU_CALLS

    def calls() -> None:
        for _ in range(count):
            action()

    return median_seconds(calls, device) / count
