"""How this interface says no: by the name of the argument."""

from collections.abc import Callable
from typing import Any, NoReturn

from polybit.errors import RequestError


def refuse(where: str, **arguments: Any) -> None:
    """Raise RequestError for the first argument that asks for something; None, False, 0, "" and () ask for nothing."""
    for name, value in arguments.items():
        asks = bool(value) if isinstance(value, (int, float, str, list, tuple)) else value is not None
        if asks:
            raise RequestError(f"{where}: {name}={value!r:.60} is not supported by polybit yet; leave it out")


def refused(name: str, why: str) -> Callable[..., NoReturn]:
    """A method that raises RequestError."""

    def method(*args: Any, **kwargs: Any) -> NoReturn:
        raise RequestError(f"{name} is not supported by polybit: {why}")

    return method
