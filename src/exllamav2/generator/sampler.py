"""ExLlamaV2Sampler.Settings, with the original's defaults, turned into polybit's sampling parameters."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from polybit.errors import RequestError
from polybit.generator import SamplingParams

REFUSED = {"refused": True}
GREEDY_BELOW = 0.01  # a lower temperature means the likeliest token


@dataclass(slots=True)  # slots: a misspelt setting is an error
class Settings:
    """Truncation follows the published definitions: top_p is the nucleus, which the original's only resembles."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.8  # 0 is off
    min_p: float = 0.0
    token_repetition_penalty: float = 1.025

    # Refused, where changed, when text is generated.
    token_repetition_range: int = field(default=-1, metadata=REFUSED)
    token_repetition_decay: int = field(default=0, metadata=REFUSED)
    token_presence_penalty: float = field(default=0.0, metadata=REFUSED)
    token_frequency_penalty: float = field(default=0.0, metadata=REFUSED)
    token_bias: Any = field(default=None, metadata=REFUSED)
    dry_multiplier: float = field(default=0.0, metadata=REFUSED)
    smoothing_factor: float = field(default=0.0, metadata=REFUSED)
    top_a: float = field(default=0.0, metadata=REFUSED)
    tfs: float = field(default=0.0, metadata=REFUSED)
    typical: float = field(default=0.0, metadata=REFUSED)
    mirostat: bool = field(default=False, metadata=REFUSED)
    temperature_last: bool = field(default=False, metadata=REFUSED)
    max_temp: float = field(default=0.0, metadata=REFUSED)
    xtc_probability: float = field(default=0.0, metadata=REFUSED)
    skew: float = field(default=0.0, metadata=REFUSED)
    cfg_scale: float | None = field(default=None, metadata=REFUSED)
    post_sampling_hooks: tuple[Any, ...] = field(default=(), metadata=REFUSED)

    # Without effect unless one of the above switches their sampler on.
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    dry_max_ngram: int = 20
    dry_sequence_breakers: Any = None
    mirostat_tau: float = 1.5
    mirostat_eta: float = 0.1
    mirostat_mu: float | None = None
    min_temp: float = 0.0
    temp_exponent: float = 1.0
    xtc_threshold: float = 0.1
    xtc_ignore_tokens: Any = None

    @staticmethod
    def greedy(**settings: Any) -> "Settings":
        """Always the likeliest token."""
        return Settings(**{"temperature": 1.0, "token_repetition_penalty": 1.0, "top_p": 0.0, "top_k": 1, **settings})

    def clone(self) -> "Settings":
        return dataclasses.replace(self)


class ExLlamaV2Sampler:
    """The namespace that scripts take `Settings` from."""

    Settings = Settings


def sampling_params(
    settings: Settings | None,
    max_tokens: int | None,
    stop_conditions: Collection[int | str],
    seed: int | None,
    show_special: bool,
) -> SamplingParams:
    """Only `stop_conditions` end a text early: as in the original, the model's end token is not one by itself."""
    settings = settings or Settings()
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if setting.metadata == REFUSED and value is not setting.default and value != setting.default:
            raise RequestError(
                f"ExLlamaV2Sampler.Settings: {setting.name} is not supported by polybit yet; "
                f"leave it at {setting.default!r}"
            )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0 if settings.temperature < GREEDY_BELOW else settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p if 0 < settings.top_p < 1 else 1.0,
        min_p=settings.min_p,
        repetition_penalty=settings.token_repetition_penalty,
        seed=seed,
        stop=tuple(stop for stop in stop_conditions if isinstance(stop, str)),
        stop_tokens=tuple(stop for stop in stop_conditions if not isinstance(stop, str)),
        ignore_eos=True,
        show_special=show_special,
    )
