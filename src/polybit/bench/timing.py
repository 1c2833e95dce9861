"""How long something takes on a device: everything before is done, everything it started is waited for."""

import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import torch

T = TypeVar("T")

WARM_UP = 2  # runs that compile, allocate and raise clocks
LEAST_RUNS = 3
MOST_RUNS = 30
ENOUGH_SECONDS = 3.0  # of timed runs, whichever of the two is reached first


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(action: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What `action` returns, and its seconds."""
    synchronize(device)
    begun = time.perf_counter()
    result = action()
    synchronize(device)
    return result, time.perf_counter() - begun


def median_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Of several runs after warm-up; of at most MOST_RUNS + WARM_UP."""
    for _ in range(WARM_UP):
        action()
    runs = list[float]()
    while len(runs) < LEAST_RUNS or (sum(runs) < ENOUGH_SECONDS and len(runs) < MOST_RUNS):
        runs.append(timed(action, device)[1])
    return median(runs)
