"""The engine behind a generator, and who guesses tokens for it."""

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.model import ExLlamaV2
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import RequestError
from polybit.generator import Engine
from polybit.generator.drafting import DraftOptions, check_vocabulary, model_drafter, vocabulary_of
from polybit.generator.speculative import Drafter, NgramDrafter
from polybit.generator.step_limits import MAX_BATCH, step_limits


def build_engine(
    model: ExLlamaV2,
    cache: ExLlamaV2Cache,
    tokenizer: ExLlamaV2Tokenizer,
    max_batch: int = MAX_BATCH,
    drafter: Drafter | None = None,
) -> Engine:
    """Raises RequestError where the model is not loaded."""
    limits, use_graphs = step_limits(model.inner, max_batch), model.config.load_options().graphs
    return Engine(model.inner, tokenizer.inner, cache.pool, model.config.folder, use_graphs, limits, drafter)


def build_drafter(
    cache: ExLlamaV2Cache,
    tokenizer: ExLlamaV2Tokenizer,
    draft_model: ExLlamaV2 | None,
    draft_cache: ExLlamaV2Cache | None,
    num_tokens: int,
    ngram: int | None,
) -> Drafter | None:
    """By a model, or by n-grams of up to `ngram` tokens. Raises RequestError or ConfigError for what cannot draft."""
    name = None if draft_model is None else str(draft_model.config.folder)
    if name is not None or ngram is not None:
        DraftOptions(name, ngram is not None, num_tokens)  # checks them
    if ngram is not None:
        return NgramDrafter(num_tokens, ngram)
    if draft_model is None:
        return None
    if draft_cache is None or draft_cache.num_tokens < cache.num_tokens:
        held = "not given" if draft_cache is None else f"of {draft_cache.num_tokens} tokens"
        raise RequestError(
            f"draft_cache is {held}, expected one for draft_model that is as large as cache, {cache.num_tokens} tokens"
        )
    draft, target, names = draft_model.inner, cache.model.inner.spec, tokenizer.inner
    check_vocabulary(draft_model.config.folder, draft.spec, names, cache.model.config.folder, target)
    use_graphs = draft_model.config.load_options().graphs
    return model_drafter(draft, draft_cache.pool, num_tokens, vocabulary_of(names, target), use_graphs)
