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
    counters: Tensor  # zero between launches


@cache
def workspace(device: torch.device) -> Workspace:
    slots = 4 * 16 * torch.cuda.get_device_properties(device).multi_processor_count
    return Workspace(
        sums=torch.empty(slots, ROWS_AT_ONCE, TILE_COLUMNS, device=device),
        counters=torch.zeros(slots, dtype=torch.int32, device=device),
    )
