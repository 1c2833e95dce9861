"""A folder on disk to an engine that generates."""

from pathlib import Path
from typing import Any

from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.errors import ConfigError, RequestError
from polybit.fields import replaced
from polybit.generator.engine import Engine
from polybit.model.load import LoadProgress
from polybit.model.load import load as load_model
from polybit.model.options import LoadOptions
from polybit.model.source import ModelSource, open_model
from polybit.text import Tokenizer

DEFAULT_CACHE_TOKENS = 8192


def load(
    path: Path | str, *, cache_tokens: int | None = None, progress: LoadProgress | None = None, **options: Any
) -> Engine:
    """Load the model in folder `path`; `options` are the fields of LoadOptions.

    cache_tokens: tokens of all prompts and answers that the K/V pool holds at once; by default what the model reaches,
    but no more than DEFAULT_CACHE_TOKENS. Raises ConfigError, FormatError, KernelError, OutOfMemory or RequestError.
    """
    _check_cache_tokens(cache_tokens)
    source = open_model(path, replaced(LoadOptions(), options, "option of loading", ConfigError))
    tokenizer = Tokenizer.open(source.folder)
    size = default_cache_tokens(source, cache_tokens)
    model = load_model(source, progress, size)
    return Engine(model, tokenizer, KVPool(model.spec, size, model.dtype, model.block_devices), source.folder)


def default_cache_tokens(source: ModelSource, wanted: int | None) -> int:
    """What is wanted, else what the model reaches or DEFAULT_CACHE_TOKENS; in whole pages."""
    return pages_for(wanted or min(source.spec.max_seq_len, DEFAULT_CACHE_TOKENS)) * PAGE_TOKENS


def _check_cache_tokens(count: Any) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"cache_tokens is {count!r:.60}, expected a whole number of at least 1")
