"""A folder on disk to an engine that generates."""

from pathlib import Path
from typing import Any

from polybit.cache import KVPool
from polybit.errors import ConfigError, RequestError
from polybit.fields import replaced
from polybit.generator.engine import Engine
from polybit.model.model import LoadProgress
from polybit.model.model import load as load_model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
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
    size = cache_tokens or min(source.spec.max_seq_len, DEFAULT_CACHE_TOKENS)
    model = load_model(source, progress)
    pool = KVPool(model.spec, size, model.dtype, model.device, model.backend)
    return Engine(model, tokenizer, pool, source.folder)


def _check_cache_tokens(count: Any) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"cache_tokens is {count!r:.60}, expected a whole number of at least 1")
