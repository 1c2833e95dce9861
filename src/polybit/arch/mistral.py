"""Mistral and Ministral: Llama with a sliding window, on every layer or on those of `layer_types`."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, is_sliding, rms_norm
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base = llama.block(cfg, layer)
    window = cfg.optional_count("sliding_window", default=4096)
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: True)
    return replace(base, attn=replace(base.attn, window=window if sliding else None))


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
