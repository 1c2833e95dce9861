"""The engine behind a generator."""

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.model import ExLlamaV2
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.generator import Engine
from polybit.generator.engine import MAX_BATCH, step_limits


def build_engine(
    model: ExLlamaV2, cache: ExLlamaV2Cache, tokenizer: ExLlamaV2Tokenizer, max_batch: int = MAX_BATCH
) -> Engine:
    """Raises RequestError where the model is not loaded."""
    limits, use_graphs = step_limits(model.inner, max_batch), model.config.load_options().graphs
    return Engine(model.inner, tokenizer.inner, cache.pool, model.config.folder, use_graphs, limits)
