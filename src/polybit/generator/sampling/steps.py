"""Every sampler, in order of application, and when it is on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from polybit.generator.params import SamplingParams
from polybit.generator.sampling import penalties, shaping, truncation
from polybit.generator.sampling.history import Changes, History, Ids, changes, fading, repeats
from polybit.generator.sampling.mask import is_member, mask_of
from polybit.generator.sampling.randomness import EXCLUDE, uniforms

if TYPE_CHECKING:
    from polybit.generator.sampling.state import SamplingState

States = Sequence["SamplingState"]
NEVER = 2.0  # a probability that no token has
FEWEST_CANDIDATES, MOST_CANDIDATES = 64, 1024


@dataclass(frozen=True)
class Step:
    """logits [S, V] of rows where it is on, its fields' values [P, S] on the device, their states -> logits [S, V]."""

    name: str
    fields: tuple[str, ...]  # of SamplingParams, that `apply` takes as values
    is_on: Callable[[SamplingParams], bool]
    apply: Callable[[Tensor, Tensor, States], Tensor]
    moves_best: bool = False  # may change which token is the likeliest
    reads_tokens: bool = False  # looks at which token a logit is of


def _of_logits(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, States], Tensor]:
    return lambda logits, values, _: function(logits, *values)


def _filter(name: str, function: Callable[..., Tensor], off: float) -> Step:
    """A sampler of one field, which has its name."""
    return Step(name, (name,), lambda params: getattr(params, name) != off, _of_logits(function))


def _penalise(logits: Tensor, values: Tensor, states: States) -> Tensor:
    repetition, presence, frequency = values
    vocab_size = logits.shape[-1]
    ids, weights = _weighted_texts(states, vocab_size)
    amount, latest = penalties.occurrences(ids.to(logits.device).long(), weights.to(logits.device), vocab_size)
    logits = penalties.repetition(logits, latest, repetition)
    return penalties.presence_and_frequency(logits, amount, latest, presence, frequency)


def _weighted_texts(states: States, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The tokens that penalties look at and their weights, both [S, L] on the host; what fills up weighs nothing."""
    texts = [_in_range(state.history, state.params.penalty_range, state.params.penalty_decay) for state in states]
    ids = np.zeros((len(texts), max(map(len, texts))), np.int32)
    weights = np.zeros(ids.shape, np.float32)
    for row, (state, text) in enumerate(zip(states, texts, strict=True)):
        ids[row, : len(text)] = text
        weights[row, : len(text)] = fading(len(text), state.params.penalty_range, state.params.penalty_decay)
    beyond = ids >= vocab_size  # prompts may hold such tokens, though they are never drawn
    ids[beyond], weights[beyond] = 0, 0
    return torch.from_numpy(ids), torch.from_numpy(weights)


def _in_range(history: History, full: int, decay: int = 0) -> Ids:
    """The tokens that count; where `full` is 0, all do."""
    return history.last(full + decay if full else len(history))


def _bias(logits: Tensor, values: Tensor, states: States) -> Tensor:
    return _added(logits, [state.bias for state in states])


def _dry(logits: Tensor, values: Tensor, states: States) -> Tensor:
    return _added(logits, [_dry_changes(state) for state in states])


def _dry_changes(state: "SamplingState") -> Changes:
    params = state.params
    found = repeats(
        _in_range(state.history, params.dry_range), state.breakers, params.dry_allowed_length, params.dry_max_match
    )
    penalty = partial(
        penalties.dry_penalty,
        multiplier=params.dry_multiplier,
        base=params.dry_base,
        allowed_length=params.dry_allowed_length,
    )
    return changes({token: -penalty(match) for token, match in found.items()})


def _added(logits: Tensor, by_row: Sequence[Changes]) -> Tensor:
    rows = np.repeat(np.arange(len(by_row)), [len(tokens) for tokens, _ in by_row])
    tokens, amounts = (np.concatenate(parts) for parts in zip(*by_row, strict=True))
    known = tokens < logits.shape[-1]
    places = tuple(torch.from_numpy(index[known]).to(logits.device) for index in (rows, tokens))
    return logits.index_put(places, torch.from_numpy(amounts[known]).to(logits.device), accumulate=True)


def _mirostat(logits: Tensor, values: Tensor, states: States) -> Tensor:
    return truncation.mirostat(logits, torch.tensor([state.bound for state in states], device=logits.device))


def _exclude_top(logits: Tensor, values: Tensor, states: States) -> Tensor:
    """The threshold where this token's draw says so, else one that nothing reaches."""
    numbers = uniforms([state.key for state in states], [state.count(EXCLUDE) for state in states])
    drawn = [bool(number < state.params.xtc_probability) for number, state in zip(numbers, states, strict=True)]
    if not any(drawn):
        return logits
    thresholds = [s.params.xtc_threshold if hit else NEVER for s, hit in zip(states, drawn, strict=True)]
    nothing = mask_of((), logits.shape[-1])
    masks = np.stack([nothing if state.spared is None else state.spared for state in states])
    spared = is_member(torch.from_numpy(masks).to(logits.device), logits.shape[-1])
    return truncation.exclude_top(logits, torch.tensor(thresholds, device=logits.device), spared)


TOP_K = _filter("top_k", truncation.top_k, off=0)
MIROSTAT = Step("mirostat", (), lambda p: p.mirostat_tau > 0, _mirostat)

STEPS = (
    Step(
        "penalties",
        ("repetition_penalty", "presence_penalty", "frequency_penalty"),
        lambda p: p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0,
        _penalise,
        moves_best=True,
    ),
    Step("logit_bias", (), lambda p: bool(p.logit_bias), _bias, moves_best=True),
    Step("dry", (), lambda p: p.dry_multiplier > 0, _dry, moves_best=True),
    _filter("smoothing_factor", shaping.smoothing, off=0),
    Step(
        "temperature",
        ("temperature",),
        lambda p: p.temperature != 1 and not p.temperature_last,
        _of_logits(shaping.temperature),
    ),
    _filter("top_n_sigma", truncation.top_n_sigma, off=0),
    TOP_K,
    _filter("top_p", truncation.top_p, off=1),
    _filter("top_a", truncation.top_a, off=0),
    _filter("min_p", truncation.min_p, off=0),
    _filter("tfs", truncation.tail_free, off=1),
    _filter("typical", truncation.typical, off=1),
    MIROSTAT,
    Step(
        "dynamic_temperature",
        ("min_temperature", "max_temperature", "temperature_exponent"),
        lambda p: p.max_temperature > 0,
        _of_logits(shaping.dynamic_temperature),
    ),
    Step(
        "temperature_last",
        ("temperature",),
        lambda p: p.temperature != 1 and p.temperature_last,
        _of_logits(shaping.temperature),
    ),
    Step("xtc", (), lambda p: p.xtc_probability > 0, _exclude_top, reads_tokens=True),
    _filter("skew", shaping.skew, off=0),
)


def num_candidates(params: SamplingParams) -> int:
    """Columns that hold what top_k leaves, where the steps after it need no others; 0: they do, or all are left.

    A power of two, so that numbers are added up in the same order whatever rows stand beside.
    """
    steps = steps_of(params)
    is_bounded = TOP_K in steps and params.top_k <= MOST_CANDIDATES
    if not is_bounded or any(step.reads_tokens for step in steps):
        return 0
    return max(FEWEST_CANDIDATES, 1 << (params.top_k - 1).bit_length())


def steps_of(params: SamplingParams) -> tuple[Step, ...]:
    """What is on. Where the likeliest token is taken anyhow, only what may change which one that is."""
    return tuple(step for step in STEPS if step.is_on(params) and (step.moves_best or not params.is_greedy))
