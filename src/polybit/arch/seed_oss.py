"""Seed-OSS: Llama with biases on q, k and v by default, and a switch of its own for o."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import attention, decoder, head_shape, rms_norm
from polybit.arch.rope import read_rope
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    shape, qkv_bias = head_shape(cfg), cfg.flag("attention_bias", default=True)
    o_bias = cfg.flag("attention_out_bias", default=False)
    attn = attention(f"model.layers.{layer}.self_attn", shape, read_rope(cfg, shape.dim), qkv_bias, o_bias)
    return replace(llama.block(cfg, layer), attn=attn)


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
