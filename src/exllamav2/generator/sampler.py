"""ExLlamaV2Sampler and its Settings, with the original's names and defaults, turned into polybit's parameters."""

import dataclasses
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exllamav2.generator.filtering import Together, both
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import RequestError
from polybit.generator import SamplingParams
from polybit.generator.params import COUNT, PENALTY, PROBABILITY, SIGNED, START, STRENGTH, Interval, check_number
from polybit.generator.request import dry_breakers, xtc_spared
from polybit.generator.sampling import SamplingState, distributions
from polybit.generator.sampling.mask import TokenMask, mask_of
from polybit.generator.sampling.sampler import draw
from polybit.generator.sampling.shaping import guided

GREEDY_BELOW = 0.01  # a lower temperature means the likeliest token
EVERYTHING = -1  # of token_repetition_range
DRY_BREAKERS = tuple('.,!?<>[](){}\n\t"')
XTC_SPARED = ("\n",)


def _number(default: float | None, interval: Interval) -> Any:
    return field(default=default, metadata={"interval": interval})


@dataclass(slots=True)  # slots: a misspelt setting is an error
class Settings:
    """Every sampler follows its published definition. Values are checked when text is generated.

    Where that definition is not what the original computes: top_p is the nucleus, and keeps the token that crosses it;
    so does typical, which measures surprise alone; XTC is drawn for each token, not averaged. Settings hold no state,
    so that jobs may share them: a text does not move `mirostat_mu`.
    """

    token_repetition_penalty: float = _number(1.025, PENALTY)
    token_repetition_range: int = _number(EVERYTHING, Interval(EVERYTHING, 1e9, whole=True))
    token_repetition_decay: int = _number(0, COUNT)
    token_frequency_penalty: float = _number(0.0, SIGNED)
    token_presence_penalty: float = _number(0.0, SIGNED)

    temperature: float = _number(0.8, STRENGTH)
    smoothing_factor: float = _number(0.0, STRENGTH)
    min_temp: float = _number(0.0, STRENGTH)
    max_temp: float = _number(0.0, STRENGTH)  # off unless above min_temp
    temp_exponent: float = _number(1.0, PENALTY)
    top_k: int = _number(50, COUNT)
    top_p: float = _number(0.8, STRENGTH)  # 0, and 1 and above, are off; so for tfs and typical
    top_a: float = _number(0.0, PROBABILITY)
    min_p: float = _number(0.0, PROBABILITY)
    tfs: float = _number(0.0, STRENGTH)
    typical: float = _number(0.0, STRENGTH)
    skew: float = _number(0.0, Interval(-10, 10))
    temperature_last: bool = False

    mirostat: bool = False
    mirostat_tau: float = _number(1.5, Interval(0, 100, above=True))
    mirostat_eta: float = _number(0.1, PROBABILITY)
    mirostat_mu: float | None = _number(None, START)  # where each text starts; None: at 2 * tau

    token_bias: Tensor | None = None  # [vocabulary], added to the logits
    cfg_scale: float | None = _number(None, Interval(0, 100, optional=True))  # of jobs with a pair of prompts
    post_sampling_hooks: list[Any] = field(default_factory=list)  # callables, see hooks.py

    dry_allowed_length: int = _number(2, Interval(1, 1000, whole=True))
    dry_base: float = _number(1.75, Interval(1, 10))
    dry_multiplier: float = _number(0.0, STRENGTH)
    dry_sequence_breakers: Collection[int] | None = None  # token ids; None: special tokens and punctuation
    dry_range: int = _number(0, COUNT)
    dry_max_ngram: int = _number(20, Interval(1, 1000, whole=True))

    xtc_probability: float = _number(0.0, PROBABILITY)
    xtc_threshold: float = _number(0.1, PROBABILITY)
    xtc_ignore_tokens: Collection[int] | None = None  # None: special tokens and line breaks

    @staticmethod
    def greedy(**settings: Any) -> "Settings":
        """Always the likeliest token."""
        return Settings(**{"temperature": 1.0, "token_repetition_penalty": 1.0, "top_p": 0.0, "top_k": 1, **settings})

    def clone(self) -> "Settings":
        return dataclasses.replace(self)

    def greedy_clone(self) -> "Settings":
        """The likeliest token under the same penalties and biases."""
        return dataclasses.replace(self, temperature=1.0, top_k=1, top_p=0.0)

    def disallow_tokens(self, tokenizer: ExLlamaV2Tokenizer, tokens: Iterable[int]) -> None:
        """Never these."""
        bias = self._bias(tokenizer)
        bias[list(tokens)] = -math.inf
        self.token_bias = bias

    def allow_tokens(self, tokenizer: ExLlamaV2Tokenizer, tokens: Iterable[int | str]) -> None:
        """None but these, ids or pieces."""
        ids = [_token_id(tokenizer, token) for token in tokens]
        bias = torch.full_like(self._bias(tokenizer), -math.inf)
        bias[ids] = self._bias(tokenizer)[ids]
        self.token_bias = bias

    def _bias(self, tokenizer: ExLlamaV2Tokenizer) -> Tensor:
        return torch.zeros(tokenizer.get_vocab_size()) if self.token_bias is None else self.token_bias.clone()

    def check(self) -> None:
        """Raises RequestError for a value out of range."""
        for setting in dataclasses.fields(self):
            value, name = getattr(self, setting.name), f"ExLlamaV2Sampler.Settings: {setting.name}"
            if "interval" in setting.metadata:
                check_number(name, value, setting.metadata["interval"])
            elif isinstance(setting.default, bool) and not isinstance(value, bool):
                raise RequestError(f"{name} is {value!r}, expected True or False")

    def params(self) -> dict[str, Any]:
        """The fields of SamplingParams that mean the same."""
        self.check()
        return {
            **self._penalties(),
            **self._dry(),
            **self._truncation(),
            "logit_bias": _bias_by_token(self.token_bias),
            "smoothing_factor": self.smoothing_factor,
            "temperature": 0.0 if self.temperature < GREEDY_BELOW or self.top_k == 1 else self.temperature,
            "temperature_last": self.temperature_last,
            "min_temperature": self.min_temp,
            "max_temperature": self.max_temp if self.max_temp > self.min_temp else 0.0,
            "temperature_exponent": self.temp_exponent,
            "skew": self.skew,
        }

    def _penalties(self) -> dict[str, Any]:
        none_in_range = self.token_repetition_range == 0 and self.token_repetition_decay == 0
        if none_in_range:
            return {"repetition_penalty": 1.0}
        return {
            "repetition_penalty": self.token_repetition_penalty,
            "presence_penalty": self.token_presence_penalty,
            "frequency_penalty": self.token_frequency_penalty,
            "penalty_range": 0 if self.token_repetition_range == EVERYTHING else max(1, self.token_repetition_range),
            "penalty_decay": self.token_repetition_decay,
        }

    def _dry(self) -> dict[str, Any]:
        breakers = self.dry_sequence_breakers
        return {
            "dry_multiplier": self.dry_multiplier,
            "dry_base": self.dry_base,
            "dry_allowed_length": self.dry_allowed_length,
            "dry_range": self.dry_range,
            "dry_max_match": max(self.dry_max_ngram, self.dry_allowed_length),
            "dry_breakers": DRY_BREAKERS if breakers is None else (),
            "dry_breaker_tokens": () if breakers is None else tuple(breakers),
        }

    def _truncation(self) -> dict[str, Any]:
        spared = self.xtc_ignore_tokens
        return {
            "top_k": self.top_k,
            "top_p": _share(self.top_p),
            "top_a": self.top_a,
            "min_p": self.min_p,
            "tfs": _share(self.tfs),
            "typical": _share(self.typical),
            "mirostat_tau": self.mirostat_tau if self.mirostat else 0.0,
            "mirostat_mu": self.mirostat_mu,
            "mirostat_eta": self.mirostat_eta,
            "xtc_probability": self.xtc_probability,
            "xtc_threshold": self.xtc_threshold,
            "xtc_spared": XTC_SPARED if spared is None else (),
            "xtc_spared_tokens": () if spared is None else tuple(spared),
        }


def _share(value: float) -> float:
    return value if 0 < value < 1 else 1.0


def _token_id(tokenizer: ExLlamaV2Tokenizer, token: int | str) -> int:
    found = tokenizer.single_id(token) if isinstance(token, str) else token
    if found is None:
        raise RequestError(f"ExLlamaV2Sampler.Settings.allow_tokens: {token!r} is no token of this model")
    return found


def _bias_by_token(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Tensor) or bias.dim() != 1:
        raise RequestError(
            "ExLlamaV2Sampler.Settings: token_bias is not a tensor [vocabulary] of what to add to logits"
        )
    tokens = bias.nonzero().flatten().tolist()
    return dict(zip(tokens, bias[tokens].tolist(), strict=True))


def sample(
    logits: Tensor,
    settings: Settings,
    sequence_ids: Tensor,
    random: float,
    tokenizer: ExLlamaV2Tokenizer,
    prefix_token: Tensor | None = None,
    return_top_tokens: int = 0,
    blocked_tokens: list[int] | None = None,
    filters: Any = None,
    filter_prefer_eos: bool = False,
    sync: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, bool]:
    """logits [S, 1, V], sequence_ids [S, n], `random` of [0, 1) -> tokens [S, 1], top tokens and their
    probabilities [S, 1, k], probabilities [S, 1], and whether a filter ended the text.

    `prefix_token`: the token writes what that one does, and perhaps more. With cfg_scale two rows of logits make one.
    """
    params = SamplingParams(**settings.params(), seed=int(random * 2**24))
    inner, rows = tokenizer.inner, _mixed(logits[:, -1].float(), settings.cfg_scale)
    sequence_ids = sequence_ids[: len(rows)]
    spared = xtc_spared(params, inner, rows.shape[-1])
    states = [SamplingState(params, ids, dry_breakers(params, inner), spared) for ids in sequence_ids.tolist()]
    known = rows[:, : inner.vocab_size]
    together = Together(filters or (), known.shape[-1], inner.eos_id if filter_prefer_eos else None)
    for state in states:
        state.blocked = blocked_tokens or ()
        state.allowed = both(together.allowed(), _healing(prefix_token, tokenizer, known.shape[-1]))
    probs = distributions(known, states)
    tokens = draw(probs.log(), torch.full((len(states),), random))[:, None]
    top = probs.topk(return_top_tokens) if return_top_tokens else None
    top_tokens, top_probs = (None, None) if top is None else (top.indices[:, None], top.values[:, None])
    return tokens, top_tokens, top_probs, probs.gather(1, tokens), together.ends_with(int(tokens[0]))


def _mixed(rows: Tensor, scale: float | None) -> Tensor:
    if scale is None:
        return rows
    if len(rows) != 2:
        raise RequestError(
            f"ExLlamaV2Sampler.sample: cfg_scale is {scale!r}, expected 2 rows of logits, not {len(rows)}"
        )
    return guided(rows[:1], rows[1:], torch.tensor([scale], device=rows.device))


def _healing(prefix_token: Tensor | None, tokenizer: ExLlamaV2Tokenizer, vocab_size: int) -> TokenMask | None:
    if prefix_token is None:
        return None
    index = tokenizer.inner.piece_index
    return mask_of(index.starting_with(index.written.get(int(prefix_token), b"")), vocab_size)


class ExLlamaV2Sampler:
    """The namespace that scripts take `Settings` from, and one step of sampling by itself."""

    Settings = Settings
    sample = staticmethod(sample)


def sampling_params(
    settings: Settings | None,
    max_tokens: int | None,
    stop_conditions: Collection[int | str],
    seed: int | None,
    show_special: bool,
    **fields: Any,
) -> SamplingParams:
    """Only `stop_conditions` end a text early: as in the original, the model's end token is not one by itself."""
    return SamplingParams(
        **(settings or Settings()).params(),
        max_tokens=max_tokens,
        seed=seed,
        stop=tuple(stop for stop in stop_conditions if isinstance(stop, str)),
        stop_tokens=tuple(stop for stop in stop_conditions if not isinstance(stop, str)),
        ignore_eos=True,
        show_special=show_special,
        **fields,
    )
