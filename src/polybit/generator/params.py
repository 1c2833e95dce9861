"""What one request wants: a frozen dataclass whose fields carry their own range and help text."""

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polybit.errors import RequestError
from polybit.fields import replaced


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; without `low` itself where `above`. `whole`: integers. `optional`: or None."""

    low: float
    high: float
    above: bool = False
    whole: bool = False
    optional: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        return f"{kind} {'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


COUNT = Interval(0, 1e9, whole=True)
STRENGTH = Interval(0, 100)
PENALTY = Interval(0, 100, above=True)
PROBABILITY = Interval(0, 1)
PROBABILITY_ABOVE_0 = Interval(0, 1, above=True)
LENGTH = Interval(1, 1e9, whole=True, optional=True)
SEED = Interval(0, 2**63 - 1, whole=True, optional=True)


def _field(default: Any, text: str, interval: Interval | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "interval": interval})


@dataclass(frozen=True)
class SamplingParams:
    """Every value is checked on construction; RequestError names the parameter, the value and the range.

    The filters work in the order of their fields here: penalty, temperature, top_k, top_p, min_p.
    """

    max_tokens: int | None = _field(512, "tokens to generate at most; None: until the context is full", LENGTH)
    repetition_penalty: float = _field(1.0, "divides the logits of tokens seen before; 1: off", PENALTY)
    temperature: float = _field(0.8, "flattens the distribution; 0: always the likeliest token", STRENGTH)
    top_k: int = _field(0, "keep the k likeliest tokens; 0: all", COUNT)
    top_p: float = _field(1.0, "keep the likeliest tokens that reach this probability; 1: all", PROBABILITY_ABOVE_0)
    min_p: float = _field(0.05, "drop tokens less likely than this times the likeliest; 0: none", PROBABILITY)
    seed: int | None = _field(None, "same seed, same text; None: different each time", SEED)
    stop: tuple[str, ...] = _field((), "texts that end the generation; they are not part of it")
    stop_tokens: tuple[int, ...] = _field((), "token ids that end the generation, besides the model's own")
    ignore_eos: bool = _field(False, "go on when the model says that it is done")
    show_special: bool = _field(False, "write special tokens out as text")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, interval = getattr(self, field.name), field.metadata["interval"]
            if interval is not None:
                _check_number(field.name, value, interval)
            elif isinstance(field.default, bool) and not isinstance(value, bool):
                raise RequestError(f"{field.name} is {value!r}, expected True or False")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_tokens", _stop_tokens(self.stop_tokens))


def with_fields(params: SamplingParams | None, fields: Mapping[str, Any]) -> SamplingParams:
    """`params` (or the defaults) with some fields replaced. Raises RequestError for a name that is none of them."""
    if not isinstance(params, SamplingParams | None):
        raise RequestError(f"params is of type {type(params).__name__}, expected SamplingParams")
    return replaced(params or SamplingParams(), fields, "sampling parameter", RequestError)


def _check_number(name: str, value: Any, interval: Interval) -> None:
    if value is None and interval.optional:
        return
    right_kind = isinstance(value, numbers.Integral if interval.whole else numbers.Real) and not isinstance(value, bool)
    if not right_kind or value not in interval:
        raise RequestError(f"{name} is {value!r}, expected {interval}")


def _stop_strings(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) and text for text in listed):
        raise RequestError(f"stop is {value!r}, expected texts that are not empty")
    return tuple(listed)


def _stop_tokens(value: Any) -> tuple[int, ...]:
    listed = (value,) if isinstance(value, int) else value
    whole = isinstance(listed, (list, tuple, set, frozenset)) and all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in listed
    )
    if not whole:
        raise RequestError(f"stop_tokens is {value!r}, expected token ids, integers from 0")
    return tuple(listed)
