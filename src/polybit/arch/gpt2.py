"""GPT-2: learned positions, LayerNorm, biases, matrices stored [in, out], a tied head."""

from collections.abc import Callable
from dataclasses import replace

from polybit.arch.config import HFConfig
from polybit.arch.decoder import LENGTH, activation, attention, decoder, head_shape, hidden_size, layer_norm, plain_mlp
from polybit.arch.fused import slices, with_fused_qkv
from polybit.spec import Attention, Block, Embedding, LayerNorm, Linear, Model, PlainMlp, SequentialBlock

RENAMES = (
    ("^transformer.", ""),
    ("^h.", "model.layers."),
    ("^wte.", "model.embed_tokens."),
    ("^wpe.", "model.wpe."),
    ("^ln_f.", "model.norm."),
    (".attn.c_attn.", ".self_attn.c_attn."),
    (".attn.c_proj.", ".self_attn.o_proj."),
)


def norm(cfg: HFConfig, key: str) -> LayerNorm:
    return layer_norm(cfg, key, "layer_norm_epsilon", bias=True)


def mlp(cfg: HFConfig, layer: int) -> PlainMlp:
    hidden = hidden_size(cfg)
    width = cfg.optional_count("n_inner") or 4 * hidden
    act = activation(cfg, "activation_function", default="gelu_new")
    return plain_mlp(f"model.layers.{layer}.mlp", hidden, width, act, bias=True, names=("c_fc", "c_proj"))


def block_of(cfg: HFConfig, layer: int, attn: Attention, mlp: PlainMlp) -> SequentialBlock:
    at = f"model.layers.{layer}"
    cfg.only("scale_attn_weights", True)
    return SequentialBlock(norm(cfg, f"{at}.ln_1"), attn, None, norm(cfg, f"{at}.ln_2"), mlp, None)


def transposed(linear: Linear) -> Linear:
    """`linear` stored [in, out] under its own key."""
    return slices(linear.key, (linear,), axis=1, transposed=True)[0]


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    cfg.only("scale_attn_by_inverse_layer_idx", False)
    at = f"model.layers.{layer}.self_attn"
    attn = attention(at, head_shape(cfg), rope=None, qkv_bias=True, o_bias=True)
    attn = with_fused_qkv(attn, f"{at}.c_attn", axis=1, transposed=True)
    plain = mlp(cfg, layer)
    plain = replace(plain, up=transposed(plain.up), down=transposed(plain.down))
    return block_of(cfg, layer, replace(attn, o=transposed(attn.o)), plain)


def whole(cfg: HFConfig, block: Callable[[HFConfig, int], Block]) -> Model:
    base = decoder(cfg, block, norm(cfg, "model.norm"), tied=True)
    rows = cfg.count("n_positions", *LENGTH)
    positions = Embedding("model.wpe", rows, base.hidden_size)
    return replace(base, positions=positions, max_seq_len=rows, renames=RENAMES)


def model(cfg: HFConfig) -> Model:
    return whole(cfg, block)
