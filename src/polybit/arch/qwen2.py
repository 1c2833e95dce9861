"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window on the upper layers if asked for."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import attention, decoder, head_shape, is_sliding, rms_norm
from polybit.arch.rope import read_rope
from polybit.spec import Model, SequentialBlock


def window(cfg: HFConfig, layer: int) -> int | None:
    """Tokens that `layer` sees, None for all."""
    tokens, used = cfg.optional_count("sliding_window", default=4096), cfg.flag("use_sliding_window", default=False)
    first = cfg.count("max_window_layers", default=28, least=0)
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: layer >= first)
    return tokens if sliding and used else None


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    shape = head_shape(cfg)
    cfg.only("use_mrope", False)
    attn = attention(f"model.layers.{layer}.self_attn", shape, read_rope(cfg, shape.dim), qkv_bias=True)
    return replace(llama.block(cfg, layer), attn=replace(attn, window=window(cfg, layer)))


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
