"""Which backends exist, and which one serves a device."""

from collections.abc import Mapping
from types import MappingProxyType

from polybit.errors import KernelError
from polybit.kernels import reference
from polybit.kernels.protocol import Backend

BACKENDS: Mapping[str, Backend] = MappingProxyType({reference.NAME: reference})


def get_backend(name: str | None) -> Backend:
    """The backend of that name; None takes the default, `reference`, which serves every torch device."""
    if name is None:
        return reference
    if name not in BACKENDS:
        raise KernelError(f"backend {name!r} does not exist; choose one of: {', '.join(BACKENDS)}")
    return BACKENDS[name]
