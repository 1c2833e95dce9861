"""Loading with a progress bar, for every command that needs a model."""

from dataclasses import asdict

from polybit import generator
from polybit.cli.console import progress
from polybit.format.hub import local_folder
from polybit.generator import Engine
from polybit.model.model import Model, load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model


def load_engine(name: str, options: LoadOptions) -> Engine:
    """A model that generates, from a folder or a Hub id."""
    folder = local_folder(name)
    with progress(f"loading {folder.name}") as advance:
        return generator.load(folder, progress=advance, **asdict(options))


def load_model(name: str, options: LoadOptions) -> Model:
    """A model without tokenizer and cache."""
    source = open_model(local_folder(name), options)
    with progress(f"loading {source.folder.name}") as advance:
        return load(source, advance)
