"""Model families in GGUF: what each calls its tensors and settings, and what a Hugging Face folder calls them.

A family is refused by name if it is not here, and a file if it holds a setting that its family does not read: it would
otherwise be computed wrongly without a word.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polybit.errors import FormatError, UnsupportedModel
from polybit.format.gguf_header import Header, Metadata

Config = dict[str, Any]
Floats = Callable[[str], np.ndarray[Any, np.dtype[np.float32]]]  # the values of a tensor by its name in the file

TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORM_NAMES = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
SANDWICH_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tables that the configuration holds, not the weights."""

INERT_SETTINGS = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "rope.scaling.attn_factor")
"""Settings of no effect, or that follow from others (LongRoPE's attention factor)."""


@dataclass(frozen=True)
class Family:
    """`config` makes what this family's config.json has beyond the shared keys."""

    architecture: str
    model_type: str
    names: Mapping[str, str]
    config: Callable[["Settings"], Config]
    interleaved_rope: bool = False  # rows of q and k are reordered so that rotated pairs are neighbours
    norm_offset: float = 0.0  # what stored norm weights have more than Hugging Face's
    strips_after_special: bool = False  # special tokens swallow the white space after them


class Settings:
    """`{arch}.*` of a file's metadata, and the few tensors that hold settings."""

    def __init__(self, header: Header, floats: Floats) -> None:
        self.header = header
        self.metadata = header.metadata
        self.arch = header.metadata.text("general.architecture")
        self.floats = floats

    def __contains__(self, name: str) -> bool:
        return f"{self.arch}.{name}" in self.metadata

    def count(self, name: str, default: int | None = None) -> int:
        return self.metadata.count(f"{self.arch}.{name}", default)

    def real(self, name: str, default: float | None = None) -> float:
        return self.metadata.real(f"{self.arch}.{name}", default)

    def text(self, name: str, default: str | None = None) -> str:
        return self.metadata.text(f"{self.arch}.{name}", default)

    @property
    def head_dim(self) -> int:
        heads = self.count("attention.head_count")
        if heads == 0:
            raise self.metadata.unusable(f"{self.arch}.attention.head_count", "0", "1 or more")
        return self.count("attention.key_length", self.count("embedding_length") // heads)

    def refuse_unread(self) -> None:
        """UnsupportedModel: the file holds a setting that nothing has asked for."""
        inert = {f"{self.arch}.{name}" for name in INERT_SETTINGS}
        unread = [key for key in self.metadata.unread(f"{self.arch}.") if key not in inert]
        if unread:
            raise UnsupportedModel(
                f"{self.metadata.where}: setting {unread[0]} is not supported for {self.arch} models"
            )


# ---- configuration


def family_of(metadata: Metadata) -> Family:
    """UnsupportedModel: a family that is not here."""
    name = metadata.text("general.architecture")
    if name not in FAMILIES:
        nearest = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; the nearest supported one is {nearest[0]}" if nearest else ""
        raise UnsupportedModel(
            f"{metadata.where}: models of architecture {name[:80]!r} are not read from GGUF{hint} "
            f"(supported: {', '.join(FAMILIES)}); use the model's safetensors folder"
        )
    return FAMILIES[name]


def make_config(header: Header, family: Family, floats: Floats) -> Config:
    """config.json of a file. FormatError: settings are missing or damaged; UnsupportedModel: one is not understood."""
    settings = Settings(header, floats)
    config = _shared(settings) | family.config(settings) | _token_ids(header)
    settings.refuse_unread()
    return {"architectures": [family.architecture], "model_type": family.model_type, **config}


def _shared(settings: Settings) -> Config:
    heads = settings.count("attention.head_count")
    for name in ("attention.value_length", "rope.dimension_count"):
        _require(settings, name, settings.head_dim)
    _require(settings, "expert_count", 0)
    return {
        "hidden_size": settings.count("embedding_length"),
        "intermediate_size": settings.count("feed_forward_length"),
        "num_hidden_layers": _num_blocks(settings),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.count("attention.head_count_kv", heads),
        "head_dim": settings.head_dim,
        "max_position_embeddings": settings.count("context_length"),
        "rms_norm_eps": settings.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": settings.real("rope.freq_base", 10000.0),
        **_rope_scaling(settings),
        "vocab_size": _num_rows(settings.header, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in settings.header.tensors,
    }


def _token_ids(header: Header) -> Config:
    """None where the file names none: a family's default would be an id of another vocabulary."""
    stored = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    keys = {name: f"tokenizer.ggml.{role}_token_id" for name, role in stored.items()}
    return {name: header.metadata.count(key) if key in header.metadata else None for name, key in keys.items()}


def _require(settings: Settings, name: str, expected: int) -> None:
    if name in settings and settings.count(name) != expected:
        found = f"{settings.arch}.{name} = {settings.count(name)}"
        raise UnsupportedModel(f"{settings.metadata.where}: {found} is not supported, only {expected} is")


def _num_rows(header: Header, name: str) -> int:
    if name not in header.tensors:
        raise FormatError(f"{header.path} holds no tensor {name}; the file is damaged or holds no language model")
    return header.tensors[name].shape[0]


def _num_blocks(settings: Settings) -> int:
    stored = {name.split(".")[1] for name in settings.header.tensors if name.startswith("blk.")}
    count = settings.count("block_count")
    if count != len(stored):
        found, expected = f"{count}", f"the {len(stored)} that the file has tensors of"
        raise settings.metadata.unusable(f"{settings.arch}.block_count", found, expected)
    return count


def _rope_scaling(settings: Settings) -> Config:
    if "rope_freqs.weight" in settings.header.tensors:
        return {"rope_scaling": _llama3_scaling(settings)}
    kind = settings.text("rope.scaling.type", "none")
    if kind == "none":
        return {}
    scaling: Config = {"rope_type": kind, "factor": settings.real("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = settings.count("rope.scaling.original_context_length")
    elif kind != "linear":
        raise UnsupportedModel(f"{settings.metadata.where}: rope scaling {kind!r} is not supported")
    return {"rope_scaling": scaling}


def _llama3_scaling(settings: Settings) -> Config:
    """The parameters behind a file's table of divisors, one a frequency; only the largest differs between models."""
    divisors = settings.floats("rope_freqs.weight")
    scaling: Config = {
        "rope_type": "llama3",
        "factor": float(divisors.max(initial=1.0)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta = settings.real("rope.freq_base", 10000.0)
    fits = divisors.ndim == 1 and 2 * len(divisors) == settings.head_dim
    if not fits or not np.allclose(divisors, _llama3_divisors(scaling, theta, settings.head_dim), rtol=1e-3):
        raise UnsupportedModel(f"{settings.metadata.where}: rope_freqs.weight is not a table of Llama 3's kind")
    return scaling


def _llama3_divisors(scaling: Config, theta: float, head_dim: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[head_dim / 2]: `factor` for waves too long for the original context, 1 for short ones, a ramp between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    with np.errstate(all="ignore"):  # a damaged theta gives a table that equals no file's
        wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
        ramp = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
        kept = np.clip(ramp, 0.0, 1.0)
        return np.asarray(1 / ((1 - kept) / scaling["factor"] + kept))


# ---- families


def _llama(settings: Settings) -> Config:
    biased = "blk.0.attn_q.bias" in settings.header.tensors
    return {"hidden_act": "silu", "attention_bias": biased, "mlp_bias": False}


def _qwen2(settings: Settings) -> Config:
    return {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(settings: Settings) -> Config:
    return {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def _gemma(settings: Settings) -> Config:
    return {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def _gemma2(settings: Settings) -> Config:
    return _gemma(settings) | {
        "query_pre_attn_scalar": _query_scale(settings, layers_of_27b=46),
        "sliding_window": settings.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": settings.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": settings.real("final_logit_softcapping", 30.0),
    }


def _gemma3(settings: Settings) -> Config:
    period = settings.count("attention.sliding_window_pattern", 6)
    if period == 0:
        raise settings.metadata.unusable(f"{settings.arch}.attention.sliding_window_pattern", "0", "1 or more")
    layers = range(settings.count("block_count"))
    return _gemma(settings) | {
        "query_pre_attn_scalar": _query_scale(settings, layers_of_27b=62),
        "sliding_window": settings.count("attention.sliding_window"),
        "layer_types": ["full_attention" if layer % period == period - 1 else "sliding_attention" for layer in layers],
        "rope_theta": settings.real("rope.freq_base", 1e6),
        "rope_local_base_freq": settings.real("rope.freq_base_swa", 10000.0),
    }


def _query_scale(settings: Settings, layers_of_27b: int) -> int:
    """Files do not say it: the largest Gemmas divide by the width a head would have, all others by the one it has."""
    if settings.count("block_count") == layers_of_27b:
        return settings.count("embedding_length") // settings.count("attention.head_count")
    return settings.head_dim


def _phi3(settings: Settings) -> Config:
    original = settings.count("rope.scaling.original_context_length", settings.count("context_length"))
    config: Config = {"hidden_act": "silu", "original_max_position_embeddings": original}
    if "attention.sliding_window" in settings:
        config["sliding_window"] = settings.count("attention.sliding_window") or None
    if "rope_factors_long.weight" in settings.header.tensors:
        factors = {
            f"{kind}_factor": settings.floats(f"rope_factors_{kind}.weight").tolist() for kind in ("long", "short")
        }
        config["rope_scaling"] = {"type": "longrope", **factors}
    return config


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", LLAMA_NAMES, _llama, interleaved_rope=True),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", LLAMA_NAMES, _qwen2),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", LLAMA_NAMES | HEAD_NORM_NAMES, _qwen3),
    "gemma": Family("GemmaForCausalLM", "gemma", LLAMA_NAMES, _gemma, norm_offset=1.0),
    "gemma2": Family("Gemma2ForCausalLM", "gemma2", LLAMA_NAMES | SANDWICH_NAMES, _gemma2, norm_offset=1.0),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        LLAMA_NAMES | SANDWICH_NAMES | HEAD_NORM_NAMES,
        _gemma3,
        norm_offset=1.0,
    ),
    "phi3": Family("Phi3ForCausalLM", "phi3", LLAMA_NAMES | PHI3_NAMES, _phi3, strips_after_special=True),
}
