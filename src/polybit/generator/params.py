"""What one request wants: a frozen dataclass whose fields carry their own range and help text."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polybit.errors import RequestError
from polybit.fields import replaced
from polybit.generator.schema import schema_text


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; without `low` itself where `above`. `whole`: integers. `optional`: or None."""

    low: float
    high: float
    above: bool = False
    whole: bool = False
    optional: bool = False

    def __contains__(self, value: Any) -> bool:
        return bool((self.low < value if self.above else self.low <= value) and value <= self.high)

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        return f"{kind} {'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


COUNT = Interval(0, 1e9, whole=True)
STRENGTH = Interval(0, 100)
SIGNED = Interval(-100, 100)
PENALTY = Interval(0, 100, above=True)
PROBABILITY = Interval(0, 1)
PROBABILITY_ABOVE_0 = Interval(0, 1, above=True)
GROWTH = Interval(1, 10)
MATCH = Interval(1, 1000, whole=True)
LENGTH = Interval(1, 1e9, whole=True, optional=True)
NUM_LOGPROBS = Interval(0, 1000, whole=True, optional=True)
START = Interval(0, 1000, optional=True)
BIAS = Interval(-1000, 1000)
SEED = Interval(0, 2**63 - 1, whole=True, optional=True)
GRAMMARS = ("json_schema", "regex", "lark")
SHAPES = ("choices", "starts_with", *GRAMMARS)  # of answers
DRY_BREAKERS = ("\n", ":", '"', "*")


def _field(default: Any, text: str, interval: Interval | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "interval": interval})


def _advanced(default: Any, text: str, interval: Interval | None = None) -> Any:
    """A field that few need: front ends show it apart."""
    return dataclasses.field(default=default, metadata={"help": text, "interval": interval, "advanced": True})


def _table(text: str) -> Any:
    """A field that holds a table, which no option of a command line does."""
    return dataclasses.field(
        default_factory=dict, hash=False, metadata={"help": text, "interval": None, "no_option": True}
    )


@dataclass(frozen=True)
class SamplingParams:
    """Every value is checked on construction; RequestError names the parameter, the value and the range.

    Those that change the choice of a token work in the order of their fields here. docs/sampling.md explains each.
    """

    max_tokens: int | None = _field(512, "tokens to generate at most; None: until the context is full", LENGTH)
    min_tokens: int = _advanced(0, "tokens before which nothing but a stop text ends the generation", COUNT)

    cfg_scale: float = _advanced(
        1.0, "how strongly the answer is led away from what negative_prompt would bring; 1: off", STRENGTH
    )
    negative_prompt: str | tuple[int, ...] | None = dataclasses.field(
        default=None,
        metadata={
            "help": "prompt of what is not wanted, for cfg_scale",
            "interval": None,
            "advanced": True,
            "on_a_line": str | None,
        },
    )

    repetition_penalty: float = _field(1.0, "divides the logits of tokens seen before; 1: off", PENALTY)
    presence_penalty: float = _advanced(0.0, "taken from the logits of tokens seen before; 0: off", SIGNED)
    frequency_penalty: float = _advanced(0.0, "taken from a token's logit each time it was seen; 0: off", SIGNED)
    penalty_range: int = _advanced(0, "latest tokens that the three penalties look at; 0: all", COUNT)
    penalty_decay: int = _advanced(0, "tokens before those over which the penalties fade out", COUNT)
    logit_bias: Mapping[int, float] = _table("what is added to the logits of tokens; -inf: never that token")
    dry_multiplier: float = _advanced(0.0, "strength of DRY, which makes repeated phrases unlikely; 0: off", STRENGTH)
    dry_base: float = _advanced(1.75, "DRY grows by this factor for each further repeated token", GROWTH)
    dry_allowed_length: int = _advanced(2, "repeated tokens from which DRY is at work", MATCH)
    dry_range: int = _advanced(0, "latest tokens in which DRY looks for repetitions; 0: all", COUNT)
    dry_max_match: int = _advanced(50, "repeated tokens above which DRY grows no more", MATCH)
    dry_breakers: tuple[str, ...] = _advanced(DRY_BREAKERS, "texts across which DRY sees no repetition")
    dry_breaker_tokens: tuple[int, ...] = _advanced((), "token ids that are such breakers too")

    smoothing_factor: float = _advanced(
        0.0, "bends the distribution: near logits nearer, far farther; 0: off", STRENGTH
    )
    temperature: float = _field(0.8, "flattens the distribution; 0: always the likeliest token", STRENGTH)
    top_n_sigma: float = _advanced(
        0.0, "keep logits within so many standard deviations of the largest; 0: all", STRENGTH
    )
    top_k: int = _field(0, "keep the k likeliest tokens; 0: all", COUNT)
    top_p: float = _field(1.0, "keep the likeliest tokens that reach this probability; 1: all", PROBABILITY_ABOVE_0)
    top_a: float = _advanced(0.0, "drop tokens less likely than this times the likeliest squared; 0: none", PROBABILITY)
    min_p: float = _field(0.05, "drop tokens less likely than this times the likeliest; 0: none", PROBABILITY)
    tfs: float = _advanced(1.0, "cut the tail where the curve flattens out; 1: nothing", PROBABILITY)
    typical: float = _advanced(
        1.0, "keep tokens of typical surprise that reach this probability; 1: all", PROBABILITY_ABOVE_0
    )
    mirostat_tau: float = _advanced(0.0, "bits of surprise that mirostat steers each token to; 0: off", STRENGTH)
    mirostat_mu: float | None = _advanced(
        None, "bits of surprise that mirostat's bound begins with; None: twice mirostat_tau", START
    )
    mirostat_eta: float = _advanced(0.1, "how fast mirostat corrects itself", PROBABILITY)
    min_temperature: float = _advanced(0.0, "dynamic temperature where the model is sure", STRENGTH)
    max_temperature: float = _advanced(0.0, "dynamic temperature where the model knows nothing; 0: off", STRENGTH)
    temperature_exponent: float = _advanced(1.0, "how the dynamic temperature follows the entropy between", PENALTY)
    temperature_last: bool = _advanced(False, "apply temperature here, after tokens were dropped, instead of above")
    xtc_probability: float = _advanced(0.0, "how often XTC drops the likeliest tokens; 0: never", PROBABILITY)
    xtc_threshold: float = _advanced(0.1, "XTC drops all but the last token of at least this probability", PROBABILITY)
    xtc_spared: tuple[str, ...] = _advanced(("\n",), "texts whose tokens XTC leaves alone, as special tokens")
    xtc_spared_tokens: tuple[int, ...] = _advanced((), "token ids that XTC leaves alone too")
    skew: float = _advanced(0.0, "above 0: unlikely tokens more often; below: less", Interval(-10, 10))

    seed: int | None = _field(None, "same seed, same text; None: different each time", SEED)
    logprobs: int | None = _advanced(
        None, "report each token's log probability and those of so many likeliest", NUM_LOGPROBS
    )
    return_logits: bool = dataclasses.field(
        default=False,
        metadata={"help": "report the model's logits at each token too", "interval": None, "no_option": True},
    )
    stop: tuple[str, ...] = _field((), "texts that end the generation; they are not part of it")
    stop_tokens: tuple[int, ...] = _field((), "token ids that end the generation, besides the model's own")
    banned_strings: tuple[str, ...] = _field((), "texts that are never written, in any case: the model goes back")
    token_healing: bool = _advanced(False, "let the answer begin inside the prompt's last token")
    choices: tuple[str, ...] = _field((), "texts of which the answer is one; (): any answer")
    starts_with: tuple[str, ...] = _advanced((), "texts with one of which the answer begins; (): any beginning")
    json_schema: str | Mapping[str, Any] | type | None = dataclasses.field(
        default=None,
        metadata={"help": "JSON schema that the answer follows", "interval": None, "on_a_line": str | None},
    )
    regex: str | None = _field(None, "regular expression that the whole answer matches")
    lark: str | None = _advanced(None, "Lark grammar that the answer follows")
    ignore_eos: bool = _field(False, "go on when the model says that it is done")
    show_special: bool = _field(False, "write special tokens out as text")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, interval = getattr(self, field.name), field.metadata["interval"]
            if interval is not None:
                check_number(field.name, value, interval)
            elif isinstance(field.default, bool) and not isinstance(value, bool):
                raise RequestError(f"{field.name} is {value!r}, expected True or False")
        for name in ("stop", "banned_strings", "choices", "starts_with", "dry_breakers", "xtc_spared"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("stop_tokens", "dry_breaker_tokens", "xtc_spared_tokens"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_text(self.json_schema))
        object.__setattr__(self, "negative_prompt", _prompt(self.negative_prompt))
        if self.is_guided and self.negative_prompt is None:
            raise RequestError(f"cfg_scale is {self.cfg_scale!r} without a negative_prompt; give one, or leave it at 1")
        _check_shapes(self)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens!r}, expected at most max_tokens, {self.max_tokens!r}")
        if self.min_temperature > self.max_temperature > 0:
            raise RequestError(
                f"min_temperature is {self.min_temperature!r}, expected at most max_temperature, "
                f"{self.max_temperature!r}"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, so that nothing is drawn."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def is_guided(self) -> bool:
        """Whether a negative prompt has a say."""
        return self.cfg_scale != 1

    @property
    def is_reported(self) -> bool:
        """Whether something is to be told of each token."""
        return self.logprobs is not None or self.return_logits

    @property
    def is_shaped(self) -> bool:
        """Whether something says what the whole answer looks like."""
        return any(getattr(self, name) for name in SHAPES)

    @property
    def reads_text(self) -> bool:
        """Whether a token's probability depends on the tokens before it other than by the model."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.dry_multiplier)
        return self.repetition_penalty != 1 or any(penalties)


def with_fields(params: SamplingParams | None, fields: Mapping[str, Any]) -> SamplingParams:
    """`params` (or the defaults) with some fields replaced. Raises RequestError for a name that is none of them."""
    if not isinstance(params, SamplingParams | None):
        raise RequestError(f"params is of type {type(params).__name__}, expected SamplingParams")
    return replaced(params or SamplingParams(), fields, "sampling parameter", RequestError)


def check_number(name: str, value: Any, interval: Interval) -> None:
    """Raises RequestError for what is no number of `interval`."""
    if value is None and interval.optional:
        return
    right_kind = isinstance(value, numbers.Integral if interval.whole else numbers.Real) and not isinstance(value, bool)
    if not right_kind or value not in interval:
        raise RequestError(f"{name} is {value!r}, expected {interval}")


def _check_shapes(params: SamplingParams) -> None:
    """At most one thing says what the answer looks like."""
    for name in ("regex", "lark"):
        value = getattr(params, name)
        if value is not None and not (isinstance(value, str) and value):
            raise RequestError(f"{name} is {value!r:.60}, expected text that is not empty")
    given = [name for name in SHAPES if getattr(params, name)]
    if params.token_healing and given:
        raise RequestError(f"token_healing is True beside {given[0]}, expected False: its answer begins with a token")
    if len(given) > 1:
        raise RequestError(f"{given[1]} is given beside {given[0]}, expected at most one of {', '.join(SHAPES)}")


def _prompt(value: Any) -> str | tuple[int, ...] | None:
    return value if value is None or isinstance(value, str) else _token_ids("negative_prompt", value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) and text for text in listed):
        raise RequestError(f"{name} is {value!r}, expected texts that are not empty")
    return tuple(listed)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    listed = (value,) if isinstance(value, int) else value
    if not isinstance(listed, (list, tuple, set, frozenset)) or not all(map(_is_token_id, listed)):
        raise RequestError(f"{name} is {value!r}, expected token ids, integers from 0")
    return tuple(listed)


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping) or not all(_is_token_id(token) and _is_bias(value[token]) for token in value):
        raise RequestError(
            f"logit_bias is {value!r:.60}, expected token ids with numbers from {BIAS.low:g} to {BIAS.high:g}, or -inf"
        )
    return {int(token): float(bias) for token, bias in value.items()}


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_bias(value: Any) -> bool:
    return isinstance(value, numbers.Real) and (value in BIAS or value == -math.inf)
