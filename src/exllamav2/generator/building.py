"""The engine behind a generator."""

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.model import ExLlamaV2
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.generator import Engine


def build_engine(model: ExLlamaV2, cache: ExLlamaV2Cache, tokenizer: ExLlamaV2Tokenizer) -> Engine:
    """Raises RequestError where the model is not loaded."""
    return Engine(model.inner, tokenizer.inner, cache.pool, model.config.folder, model.config.load_options().graphs)
