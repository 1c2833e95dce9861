"""Loading with a progress bar, for every command that needs a model."""

from dataclasses import asdict
from pathlib import Path

from polybit import generator
from polybit.cli.console import progress
from polybit.generator import Engine
from polybit.generator.drafting import DraftOptions
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import ModelSource


def load_engine(
    name: str | Path,
    options: LoadOptions,
    cache_tokens: int | None = None,
    drafting: DraftOptions | None = None,
) -> Engine:
    """A model that generates, from a folder or a Hub id."""
    with progress(f"loading {name}") as advance:
        return generator.load(
            name, cache_tokens=cache_tokens, progress=advance, **asdict(drafting or DraftOptions()), **asdict(options)
        )


def load_model(source: ModelSource) -> Model:
    """A model without tokenizer and cache."""
    with progress(f"loading {source.folder.name}") as advance:
        return load(source, advance)
