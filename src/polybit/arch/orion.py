"""Orion: Llama with LayerNorm, whose epsilon stands under rms_norm_eps all the same."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, layer_norm
from polybit.spec import LayerNorm, Model, SequentialBlock


def norm(cfg: HFConfig, key: str) -> LayerNorm:
    return layer_norm(cfg, key, "rms_norm_eps", bias=True)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at = f"model.layers.{layer}"
    return replace(
        llama.block(cfg, layer),
        attn_norm=norm(cfg, f"{at}.input_layernorm"),
        mlp_norm=norm(cfg, f"{at}.post_attention_layernorm"),
    )


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, norm(cfg, "model.norm"))
