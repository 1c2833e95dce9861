"""A model's description by whatever names it: what questions about sizes need, without its weights."""

from pathlib import Path

from polybit import arch, spec
from polybit.bench.shapes import SHAPES, read_shape
from polybit.errors import ConfigError, did_you_mean
from polybit.format import gguf
from polybit.format.hub import HUB_ID, local_folder
from polybit.model.source import read_config


def read_description(name: str) -> spec.Model:
    """Of a folder, an id on the Hub, a .gguf file, a config.json, or one of SHAPES; what is here comes first.

    Raises ConfigError, UnsupportedModel or FormatError.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return arch.read_model(gguf.read_config(path), where=name)
    if path.suffix == ".json" or (name in SHAPES and not path.exists()):
        return read_shape(str(path))
    if not path.exists() and not HUB_ID.fullmatch(name):
        raise ConfigError(
            f"{name} is no folder here, no id on the Hub and no shape; {did_you_mean(name, list(SHAPES))}"
        )
    folder = local_folder(name, weights=False)
    return arch.read_model(read_config(folder), where=str(folder / "config.json"))
