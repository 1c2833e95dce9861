"""StarCoder2: LayerNorm, biases everywhere, a GELU MLP without a gate, a sliding window, a tied head."""

from dataclasses import replace

from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, attention, decoder, head_shape, hidden_size, layer_norm, plain_mlp
from polybit.arch.rope import read_rope
from polybit.spec import LayerNorm, Model, SequentialBlock


def norm(cfg: HFConfig, key: str) -> LayerNorm:
    return layer_norm(cfg, key, "norm_epsilon", "layer_norm_epsilon", bias=True)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at, shape, bias = f"model.layers.{layer}", head_shape(cfg), cfg.flag("use_bias", default=True)
    cfg.only("norm_type", "layer_norm")
    cfg.only("mlp_type", "default")
    cfg.only("scale_attn_weights", True)
    width, act = cfg.count("intermediate_size"), activation(cfg, default="gelu_pytorch_tanh")
    attn = attention(f"{at}.self_attn", shape, read_rope(cfg, shape.dim), bias, bias)
    return SequentialBlock(
        attn_norm=norm(cfg, f"{at}.input_layernorm"),
        attn=replace(attn, window=cfg.optional_count("sliding_window")),
        attn_post_norm=None,
        mlp_norm=norm(cfg, f"{at}.post_attention_layernorm"),
        mlp=plain_mlp(f"{at}.mlp", hidden_size(cfg), width, act, bias, ("c_fc", "c_proj")),
        mlp_post_norm=None,
    )


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, norm(cfg, "model.norm"), tied=True)
