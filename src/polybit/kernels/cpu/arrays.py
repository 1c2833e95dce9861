"""Tensors as the arrays that compiled kernels take, and which tensors they are for.

A call of torch takes some microseconds however little there is to do, and a decode step makes hundreds. So does waking
the other cores, which is worth it from FEW numbers on. A row's result is the same either way.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
FEW = 1 << 15  # numbers


def is_small(x: Tensor) -> bool:
    return x.numel() <= FEW


def array(x: Tensor) -> NDArray[Any]:
    """Contiguous, so that one compiled kernel serves all."""
    found: NDArray[Any] = x.contiguous().numpy()
    return found


def floats(x: Tensor) -> Floats:
    return array(x.float())
