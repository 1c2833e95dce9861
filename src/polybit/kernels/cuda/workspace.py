"""Where thread blocks leave their parts of sums; launches on one device follow one another and share it."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from polybit.kernels.cuda.stream import TILE_COLUMNS

ROWS_AT_ONCE = 16  # of `exl2_decode`


@dataclass(frozen=True, eq=False)
class Workspace:
    sums: Tensor  # [places, 16, 64] fp32; products of more rows divide the same memory otherwise
    counters: Tensor  # [places] zero between launches
    exchanges: Tensor  # [fewer places, 16, 64] zero between launches: of tiles in two parts


@cache
def workspace(device: torch.device) -> Workspace:
    num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    slots = 4 * 16 * num_processors
    exchanges = 2 * num_processors  # as many as one thread block a multiprocessor can share with the next
    return Workspace(
        sums=torch.empty(slots, ROWS_AT_ONCE, TILE_COLUMNS, device=device),
        counters=torch.zeros(slots, dtype=torch.int32, device=device),
        exchanges=torch.zeros(exchanges, ROWS_AT_ONCE, TILE_COLUMNS, dtype=torch.int32, device=device),
    )
