"""Independent pieces of work dealt out to devices of one kind, a thread for each device.

What a piece finds does not depend on where it runs, so results are the same however many devices there are.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import torch

from polybit.model.device import current

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Work(Generic[Found]):
    """`run` is told its device, in a thread where that is the current one, and brings home what it finds."""

    cost: int  # by which works compare
    run: Callable[[torch.device], Found]


def deal(costs: Mapping[Key, int], count: int) -> list[list[Key]]:
    """Keys for each of `count` devices: the dearest first, each to the first of those that have least to do."""
    hands, loads = [list[Key]() for _ in range(count)], [0] * count
    for key in sorted(costs, key=lambda key: -costs[key]):
        least = loads.index(min(loads))
        hands[least].append(key)
        loads[least] += costs[key]
    return hands


def spread(devices: Sequence[torch.device], works: Mapping[Key, Work[Found]]) -> Iterator[tuple[Key, Found]]:
    """What each work finds, in their order. A single device does each when it is asked for: no two lie in memory."""
    if len(devices) == 1 or len(works) < 2:
        yield from ((key, work.run(devices[0])) for key, work in works.items())
        return
    _load_linear_algebra(devices[0])
    hands = deal({key: work.cost for key, work in works.items()}, len(devices))
    with ThreadPoolExecutor(len(devices)) as threads:
        running = [threads.submit(_run, device, hand, works) for device, hand in zip(devices, hands, strict=True)]
    found = {key: value for thread in running for key, value in thread.result().items()}
    yield from ((key, found.pop(key)) for key in works)


@cache
def _load_linear_algebra(device: torch.device) -> None:
    """torch loads a GPU's at its first use, and fails where two threads are the first (pytorch/pytorch#90613)."""
    torch.linalg.cholesky_ex(torch.eye(1, device=device))


def _run(device: torch.device, hand: Sequence[Key], works: Mapping[Key, Work[Found]]) -> dict[Key, Found]:
    with torch.no_grad(), current(device):  # both are a thread's own
        return {key: works[key].run(device) for key in hand}
