"""What a job or a stream asks for, as a request to polybit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from exllamav2.generator.filtering import Together
from exllamav2.generator.filters import ExLlamaV2Filter
from exllamav2.generator.hooks import NUM_CANDIDATES, last_word
from exllamav2.generator.sampler import Settings
from polybit.errors import RequestError
from polybit.generator import Engine, SamplingParams, Stream
from polybit.generator.serving import PATIENCE

Rows = list[list[int]]


def rows_of(input_ids: Any, pad_id: int | None, num_padding: Sequence[int] | None = None) -> Rows:
    """One prompt, or a pair for CFG: a tensor [n], [1, n] or [2, n], or a list of them with a row each.

    `num_padding`: how much of each row is padding, which stands on the left; None: as many as are `pad_id` where there
    are two rows in one tensor.
    """
    parts = input_ids if isinstance(input_ids, list | tuple) else [input_ids]
    if not all(isinstance(part, Tensor) and part.dim() in (1, 2) for part in parts):
        raise RequestError("input_ids must be a tensor of ids [1, n], or two of them for CFG")
    rows = [[int(token) for token in row] for part in parts for row in part.reshape(-1, part.shape[-1]).tolist()]
    if len(rows) not in (1, 2):
        raise RequestError(f"input_ids has {len(rows)} rows, expected one, or two for CFG; a job takes one prompt")
    if num_padding is None:
        num_padding = [_leading(row, pad_id) if len(parts) < len(rows) else 0 for row in rows]
    if len(num_padding) != len(rows):
        raise RequestError(f"input_ids has {len(rows)} rows, but the padding of {len(num_padding)} is given")
    return [row[count:] for row, count in zip(rows, num_padding, strict=True)]


def _leading(row: list[int], pad_id: int | None) -> int:
    return next((place for place, token in enumerate(row) if token != pad_id), len(row))


def begin(
    engine: Engine,
    rows: Rows,
    settings: Settings | None,
    params: SamplingParams,
    filters: Any = None,
    prefers_eos: bool = False,
    patience: int | None = PATIENCE,
) -> Stream:
    """On its way. Raises RequestError for what does not go together."""
    settings = settings or Settings()
    if settings.post_sampling_hooks:
        params = replace(params, return_logits=True, logprobs=max(params.logprobs or 0, NUM_CANDIDATES))
    together = _together(filters, prefers_eos, engine, params)
    hooks = tuple(settings.post_sampling_hooks)
    revise = last_word(hooks, together) if hooks else None
    params = _guided(params, settings.cfg_scale, rows[1:])
    return engine.stream(rows[0], params, patience=patience, own_filter=together, revise=revise)


def _together(filters: Any, prefers_eos: bool, engine: Engine, params: SamplingParams) -> Together | None:
    listed = checked_filters(filters)
    if not listed:
        return None
    if params.banned_strings:
        raise RequestError("filters are given beside banned_strings, which take tokens back; leave one of them out")
    together = Together(listed, engine.vocab_size, engine.tokenizer.eos_id if prefers_eos else None)
    together.begin()
    return together


def checked_filters(filters: Any) -> list[ExLlamaV2Filter]:
    listed = [] if filters is None else filters
    if not isinstance(listed, list | tuple) or not all(isinstance(each, ExLlamaV2Filter) for each in listed):
        raise RequestError(f"filters is {filters!r:.60}, expected a list of objects of classes under ExLlamaV2Filter")
    return list(listed)


def _guided(params: SamplingParams, scale: float | None, negative: Rows) -> SamplingParams:
    if scale is None and negative:
        raise RequestError("a pair of prompts needs ExLlamaV2Sampler.Settings.cfg_scale")
    if scale is not None and not negative:
        raise RequestError(f"ExLlamaV2Sampler.Settings: cfg_scale is {scale!r}, expected a pair of prompts with it")
    return params if scale is None else replace(params, cfg_scale=scale, negative_prompt=tuple(negative[0]))
