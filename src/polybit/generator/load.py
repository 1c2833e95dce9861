"""A folder on disk to an engine that generates."""

import logging
from pathlib import Path
from typing import Any

from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.errors import ConfigError, RequestError
from polybit.fields import check_callback, replaced
from polybit.generator.engine import MAX_BATCH, Engine, step_limits
from polybit.model.load import LoadProgress, build
from polybit.model.options import LoadOptions
from polybit.model.plan import Machine
from polybit.model.setup import Setup, set_up, tell
from polybit.model.source import ModelSource, open_model
from polybit.text import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_CACHE_TOKENS = 8192
LEAST_CACHE_TOKENS = 1024  # with which a conversation can be had


def load(
    path: Path | str,
    *,
    cache_tokens: int | None = None,
    max_batch: int = MAX_BATCH,
    progress: LoadProgress | None = None,
    **options: Any,
) -> Engine:
    """Load the model in folder `path`; `options` are the fields of LoadOptions.

    cache_tokens: tokens of all prompts and answers that the K/V pool holds at once; by default what the model reaches,
    but no more than DEFAULT_CACHE_TOKENS, and less where memory is short. max_batch: requests that run at once; more
    wait. Raises ConfigError, FormatError, KernelError,
    OutOfMemory or RequestError.
    """
    if cache_tokens is not None:
        _check_count("cache_tokens", cache_tokens)
    _check_count("max_batch", max_batch)
    check_callback("progress", progress, RequestError)
    source = open_model(path, replaced(LoadOptions(), options, "option of loading", ConfigError))
    tokenizer = Tokenizer.open(source.folder)
    setup = plan_for(source, cache_tokens)
    tell(setup, source)
    model = build(source, setup, progress)
    pool = KVPool(model.spec, setup.plan.cache_tokens, model.dtype, model.block_devices, model.backend, model.cache)
    limits = step_limits(model, max_batch)
    return Engine(model, tokenizer, pool, source.folder, source.options.graphs, limits)


def plan_for(source: ModelSource, cache_tokens: int | None, machine: Machine | None = None) -> Setup:
    """How to load `source` beside a K/V pool of `cache_tokens` in whole pages; None: as `load` chooses."""
    wanted = pages_for(cache_tokens or min(source.spec.max_seq_len, DEFAULT_CACHE_TOKENS)) * PAGE_TOKENS
    fewest = wanted if cache_tokens else min(wanted, LEAST_CACHE_TOKENS)
    setup = set_up(source, wanted, machine, fewest)
    if setup.plan.cache_tokens < wanted:
        log.warning("memory is short: the cache holds %d tokens instead of %d", setup.plan.cache_tokens, wanted)
    return setup


def _check_count(name: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"{name} is {count!r:.60}, expected a whole number of at least 1")
