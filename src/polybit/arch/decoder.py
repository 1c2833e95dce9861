"""What most families share: sizes, projections, MLPs, norms and the whole model, under the names that Llama uses."""

from collections.abc import Callable
from dataclasses import dataclass

from polybit.arch.config import HFConfig
from polybit.spec import (
    Activation,
    Attention,
    Block,
    Embedding,
    GatedMlp,
    Head,
    LayerNorm,
    Linear,
    Model,
    Norm,
    PlainMlp,
    RMSNorm,
    Rope,
)

HIDDEN = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
LENGTH = ("max_sequence_length", "model_max_length", "max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")
MOST_LAYERS = 512
MOST_EXPERTS = 512

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


@dataclass(frozen=True)
class HeadShape:
    """How a hidden state is cut into attention heads."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int


def hidden_size(cfg: HFConfig) -> int:
    return cfg.count(*HIDDEN)


def num_layers(cfg: HFConfig) -> int:
    return cfg.count(*LAYERS, most=MOST_LAYERS)


def head_shape(cfg: HFConfig, kv_heads: int | None = None) -> HeadShape:
    """Errors: ConfigError where heads do not divide what they share."""
    hidden, heads = hidden_size(cfg), cfg.count(*HEADS)
    kv_heads = kv_heads or cfg.count("num_key_value_heads", default=heads)
    dim = cfg.optional_count("head_dim")
    if dim is None and hidden % heads:
        raise cfg.error("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
    if heads % kv_heads:
        raise cfg.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    return HeadShape(hidden, heads, kv_heads, dim or hidden // heads)


def attention(at: str, shape: HeadShape, rope: Rope | None, qkv_bias: bool = False, o_bias: bool = False) -> Attention:
    """Full attention with the usual four projections below `at`, logits scaled by 1 / sqrt(head dim)."""
    wide, narrow = shape.heads * shape.dim, shape.kv_heads * shape.dim
    return Attention(
        q=Linear(f"{at}.q_proj", shape.hidden, wide, qkv_bias),
        k=Linear(f"{at}.k_proj", shape.hidden, narrow, qkv_bias),
        v=Linear(f"{at}.v_proj", shape.hidden, narrow, qkv_bias),
        o=Linear(f"{at}.o_proj", wide, shape.hidden, o_bias),
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        scale=shape.dim**-0.5,
        rope=rope,
    )


def gated_mlp(
    at: str,
    hidden: int,
    width: int,
    activation: Activation,
    bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> GatedMlp:
    gate, up, down = (f"{at}.{name}" for name in names)
    return GatedMlp(
        Linear(gate, hidden, width, bias),
        Linear(up, hidden, width, bias),
        Linear(down, width, hidden, bias),
        activation,
    )


def plain_mlp(at: str, hidden: int, width: int, activation: Activation, bias: bool, names: tuple[str, str]) -> PlainMlp:
    up, down = (f"{at}.{name}" for name in names)
    return PlainMlp(Linear(up, hidden, width, bias), Linear(down, width, hidden, bias), activation)


def rms_norm(cfg: HFConfig, key: str) -> RMSNorm:
    return RMSNorm(key, hidden_size(cfg), cfg.real("rms_norm_eps", default=1e-6))


def layer_norm(cfg: HFConfig, key: str, *eps_keys: str, bias: bool) -> LayerNorm:
    return LayerNorm(key, hidden_size(cfg), cfg.real(*eps_keys, default=1e-5), bias)


def activation(cfg: HFConfig, *keys: str, default: str = "silu") -> Activation:
    name = cfg.text(*(keys or ("hidden_act",)), default=default)
    if name not in _ACTIVATIONS:
        raise cfg.unsupported(keys[0] if keys else "hidden_act", name, "one of " + ", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def is_sliding(cfg: HFConfig, layer: int, otherwise: Callable[[int], bool]) -> bool:
    """Whether a layer sees only a window: by `layer_types`, or by a rule of the family where that is absent."""
    types = cfg.texts("layer_types")
    if types is None:
        return otherwise(layer)
    if len(types) < num_layers(cfg):
        raise cfg.error("layer_types", list(types), f"an entry for each of {num_layers(cfg)} layers")
    if types[layer] not in ("sliding_attention", "full_attention"):
        raise cfg.unsupported(f"layer_types[{layer}]", types[layer], "'sliding_attention' or 'full_attention'")
    return types[layer] == "sliding_attention"


def decoder(cfg: HFConfig, block: Callable[[HFConfig, int], Block], norm: Norm, tied: bool = False) -> Model:
    """The whole model around `block`; `tied`: whether the head is the embedding where the config does not say."""
    hidden, vocabulary = hidden_size(cfg), cfg.count("vocab_size")
    return Model(
        architecture=cfg.architecture,
        embedding=Embedding("model.embed_tokens", vocabulary, hidden),
        positions=None,
        blocks=tuple(block(cfg, layer) for layer in range(num_layers(cfg))),
        norm=norm,
        head=Head(Linear("lm_head", hidden, vocabulary), cfg.flag("tie_word_embeddings", default=tied)),
        max_seq_len=cfg.count(*LENGTH, default=2048),
    )
