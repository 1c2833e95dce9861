"""How a model is loaded: one frozen dataclass. CLI flags and `polybit.load` arguments come from its fields."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from polybit.errors import ConfigError, did_you_mean

KINDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


@dataclass(frozen=True)
class LoadOptions:
    """None means: chosen by the rule that the field's comment states, and said in the log.

    ConfigError: a value of another type. Ranges are checked where a value meets the model or the machine.
    """

    device: str | None = None  # cpu, cuda, cuda:N, mps; None: POLYBIT_DEVICE, else CUDA if there is one, else the CPU
    dtype: str | None = None  # float32, float16, bfloat16 of activations; None: float32 on the CPU, float16 elsewhere
    backend: str | None = None  # None: the fastest that serves the device
    max_seq_len: int | None = None  # tokens a sequence may reach; None: what config.json says
    rope_scale: float | None = None  # replaces the model's rope scaling: positions divided by this
    rope_alpha: float | None = None  # NTK alpha: stretches the rope base
    rope_yarn: float | None = None  # replaces the model's rope scaling: YaRN by this factor
    # Hold quantized weights dequantized: faster, more memory. None: where they take at most half of the free memory.
    unpacked: bool | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(LoadOptions).items():
            value, kind = getattr(self, name), get_args(hint)[0]  # each is a kind or None
            if value is not None and not _is_a(kind, value):
                raise ConfigError(f"{name} is {value!r:.60}, expected {KINDS[kind]}")


def load_options(fields: Mapping[str, Any]) -> LoadOptions:
    """LoadOptions of these fields. ConfigError for a name that is none of them, or a value of another type."""
    names = [field.name for field in dataclasses.fields(LoadOptions)]
    for name in fields:
        if name not in names:
            raise ConfigError(f"unknown option {name!r} of loading; {did_you_mean(name, names)}")
    return LoadOptions(**fields)


def _is_a(kind: type, value: object) -> bool:
    if isinstance(value, bool):  # an int to Python
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
