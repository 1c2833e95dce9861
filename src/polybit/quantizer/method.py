"""The methods of conversion: how a matrix is rounded, and how options are judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Method:
    """`by_loss` chooses between the two families, which differ in more than numbers.

    False: the original's (format 9 and 10). Options are presets, judged by the relative error of a module's output.
    True: the gradient of the model's own loss weighs tokens and columns. Scales are fitted code by code, each matrix
    sees what the quantized ones before it compute and makes up for a part of their errors, rounding is followed by
    `sweeps` of coordinate descent, and options are priced in nats.
    """

    by_loss: bool
    damping: float  # added to a Hessian's diagonal, as a share of its mean
    shrinkage: float  # taken off a Hessian's off-diagonals
    sweeps: int
    correction: float  # the share of its inputs' errors that a matrix is meant to make up for


ORIGINAL = Method(by_loss=False, damping=0.12, shrinkage=0.0, sweeps=0, correction=0.0)
METHODS: Mapping[str, Method] = MappingProxyType(
    {"gptq-loss": Method(by_loss=True, damping=0.03, shrinkage=0.5, sweeps=2, correction=0.2), "gptq-v2": ORIGINAL}
)
