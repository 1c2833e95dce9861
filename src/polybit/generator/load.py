"""A folder on disk to an engine that generates."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from polybit.amounts import gibibytes
from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.errors import ConfigError, OutOfMemory, RequestError
from polybit.fields import check_callback, replaced
from polybit.generator.drafting import DraftOptions, PlannedDraft, open_draft, plan_draft, vocabulary_of
from polybit.generator.engine import Engine
from polybit.generator.speculative import Drafter, NgramDrafter
from polybit.generator.step_limits import MAX_BATCH, step_limits
from polybit.model.load import LoadProgress, build
from polybit.model.machine import this_machine
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
    draft: Path | str | None = None,
    ngram_draft: bool = False,
    num_draft_tokens: int = DraftOptions.num_draft_tokens,
    progress: LoadProgress | None = None,
    **options: Any,
) -> Engine:
    """Load the model in folder `path`; `options` are the fields of LoadOptions.

    cache_tokens: tokens of all prompts and answers that the K/V pool holds at once; by default what the model reaches,
    but no more than DEFAULT_CACHE_TOKENS, and less where memory is short. max_batch: requests that run at once; more
    wait. draft, ngram_draft: a smaller model, or the text's own past, guesses up to num_draft_tokens ahead: greedy and
    seeded answers stay the same, others as likely, and all come sooner. Raises ConfigError, FormatError, KernelError,
    OutOfMemory or RequestError.
    """
    if cache_tokens is not None:
        _check_count("cache_tokens", cache_tokens)
    _check_count("max_batch", max_batch)
    check_callback("progress", progress, RequestError)
    drafting = DraftOptions(None if draft is None else str(draft), ngram_draft, num_draft_tokens)
    source = open_model(path, replaced(LoadOptions(), options, "option of loading", ConfigError))
    tokenizer = Tokenizer.open(source.folder)
    draft_source = None if drafting.draft is None else open_draft(drafting.draft, source, tokenizer)
    setup, planned = plan_with(source, draft_source, cache_tokens)
    tell(setup, source)
    model = build(source, setup, progress)
    pool = KVPool(model.spec, setup.plan.cache_tokens, model.dtype, model.block_devices, model.backend, model.cache)
    drafter: Drafter | None = NgramDrafter(num_draft_tokens) if ngram_draft else None
    if planned is not None:
        drafter = planned.load(setup.plan.cache_tokens, num_draft_tokens, vocabulary_of(tokenizer, source.spec))
    limits = step_limits(model, max_batch)
    return Engine(model, tokenizer, pool, source.folder, source.options.graphs, limits, drafter)


def wanted_tokens(source: ModelSource, cache_tokens: int | None) -> int:
    """Of the K/V pool, in whole pages; `cache_tokens` is None where `load` is to choose."""
    return pages_for(cache_tokens or min(source.spec.max_seq_len, DEFAULT_CACHE_TOKENS)) * PAGE_TOKENS


def plan_for(source: ModelSource, cache_tokens: int | None, machine: Machine | None = None) -> Setup:
    """How to load `source` beside a K/V pool of `cache_tokens` in whole pages; None: as `load` chooses."""
    wanted = wanted_tokens(source, cache_tokens)
    fewest = wanted if cache_tokens else min(wanted, LEAST_CACHE_TOKENS)
    setup = set_up(source, wanted, machine, fewest)
    if setup.plan.cache_tokens < wanted:
        log.warning("memory is short: the cache holds %d tokens instead of %d", setup.plan.cache_tokens, wanted)
    return setup


class Planned(NamedTuple):
    setup: Setup
    draft: PlannedDraft | None


def plan_with(
    source: ModelSource, draft: ModelSource | None, cache_tokens: int | None, machine: Machine | None = None
) -> Planned:
    """`plan_for` into what the draft leaves, if there is one."""
    if draft is None:
        return Planned(plan_for(source, cache_tokens, machine), None)
    wanted = wanted_tokens(source, cache_tokens)
    planned = plan_draft(draft, wanted, machine or this_machine(source.options))
    return Planned(_plan_beside(planned, source, cache_tokens), planned)


def _plan_beside(draft: PlannedDraft, source: ModelSource, cache_tokens: int | None) -> Setup:
    """How to load `source` into what its draft leaves."""
    try:
        return plan_for(source, cache_tokens, draft.left)
    except OutOfMemory as error:
        raise OutOfMemory(
            f"{error}; or no draft: {draft.source.folder} takes {gibibytes(draft.num_bytes)} more"
        ) from None


def _check_count(name: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"{name} is {count!r:.60}, expected a whole number of at least 1")
