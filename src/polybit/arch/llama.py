"""Llama 1 to 3, SmolLM2, TinyLlama and the many that took its shape."""

from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, attention, decoder, gated_mlp, head_shape, hidden_size, rms_norm
from polybit.arch.rope import read_rope
from polybit.spec import GatedMlp, Model, SequentialBlock


def mlp(cfg: HFConfig, layer: int) -> GatedMlp:
    bias = cfg.flag("mlp_bias", default=False)
    width = cfg.count("intermediate_size")
    return gated_mlp(f"model.layers.{layer}.mlp", hidden_size(cfg), width, activation(cfg), bias)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at, shape, bias = f"model.layers.{layer}", head_shape(cfg), cfg.flag("attention_bias", default=False)
    cfg.only("rope_interleaved", False)
    return SequentialBlock(
        attn_norm=rms_norm(cfg, f"{at}.input_layernorm"),
        attn=attention(f"{at}.self_attn", shape, read_rope(cfg, shape.dim), bias, bias),
        attn_post_norm=None,
        mlp_norm=rms_norm(cfg, f"{at}.post_attention_layernorm"),
        mlp=mlp(cfg, layer),
        mlp_post_norm=None,
    )


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
