"""Shapes of published models, as their config.json gives them: random weights are as fast as trained ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from polybit import arch, spec
from polybit.errors import ConfigError, did_you_mean
from polybit.text.json_object import read_object

Config = dict[str, Any]


def _config(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, **others: Any) -> Config:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "hidden_act": "silu",
    } | others


def _llama(*sizes: int, factor: float | None = None, **others: Any) -> Config:
    """Llama 3; `factor`: of the rope scaling that 3.1 and 3.2 have."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    longer = {} if factor is None else {"rope_scaling": scaling, "max_position_embeddings": 131072}
    common = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
    return _config(*sizes, max_position_embeddings=8192) | common | longer | others


def _qwen(*sizes: int, **others: Any) -> Config:
    """Qwen 2.5."""
    common = {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
    return _config(*sizes, max_position_embeddings=32768) | common | others


SHAPES: Mapping[str, Config] = MappingProxyType(
    {
        "smollm2-135m": _llama(576, 30, 9, 3, 1536, 49152, rope_theta=100000.0, tie_word_embeddings=True),
        "qwen-0.5b": _qwen(896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True),
        "llama-1b": _llama(2048, 16, 32, 8, 8192, 128256, factor=32.0, tie_word_embeddings=True),
        "llama-3b": _llama(3072, 28, 24, 8, 8192, 128256, factor=32.0, tie_word_embeddings=True),
        "qwen-7b": _qwen(3584, 28, 28, 4, 18944, 152064),
        "llama-8b": _llama(4096, 32, 32, 8, 14336, 128256, factor=8.0),
        "qwen-14b": _qwen(5120, 48, 40, 8, 13824, 152064),
        "qwen-32b": _qwen(5120, 64, 40, 8, 27648, 152064),
        "mixtral-8x7b": _config(
            *(4096, 32, 32, 8, 14336, 32000),
            architectures=["MixtralForCausalLM"],
            max_position_embeddings=32768,
            num_local_experts=8,
            num_experts_per_tok=2,
            rms_norm_eps=1e-5,
            rope_theta=1000000.0,
        ),
        "llama-70b": _llama(8192, 80, 64, 8, 28672, 128256),
    }
)


@dataclass(frozen=True)
class Wish:
    """`llama-70b@2.4`, read."""

    name: str
    model: spec.Model
    bits: float


def read_wish(text: str) -> Wish:
    """NAME@BITS; NAME is one of SHAPES, or the path of a config.json. Raises ConfigError or UnsupportedModel."""
    name, at, number = text.rpartition("@")
    bits = _number(number)
    if not at or bits is None:
        raise ConfigError(f"--synthetic {text} is not a shape and its bits per weight; write it as llama-8b@4.0")
    return Wish(Path(name).stem if name.endswith(".json") else name, read_shape(name), bits)


def read_shape(name: str) -> spec.Model:
    """One of SHAPES, or the path of a config.json. Raises ConfigError or UnsupportedModel."""
    return _from_file(Path(name)) if name.endswith(".json") else _from_table(name)


def _from_file(path: Path) -> spec.Model:
    config = read_object(path)
    if config is None:
        raise ConfigError(f"there is no {path}; give the path of a model's config.json")
    return arch.read_model(config, where=str(path))


def _from_table(name: str) -> spec.Model:
    if name not in SHAPES:
        nearest = did_you_mean(name, list(SHAPES))
        raise ConfigError(f"unknown shape {name!r} (the path of a config.json ends in .json); {nearest}")
    return arch.read_model(SHAPES[name], where=f"shape {name}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
