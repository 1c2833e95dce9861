"""EXAONE 4: OLMo 2's norms after the branches, Qwen3's norms on the heads; beside windows, full layers have no rope."""

from dataclasses import replace

from polybit.arch import llama, olmo, qwen3
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, is_sliding, rms_norm
from polybit.spec import Model, SequentialBlock


def is_windowed(cfg: HFConfig, layer: int) -> bool:
    """By `layer_types`; else by the pattern, whose letters newer configs keep for the reader."""
    if "layer_types" in cfg:
        cfg.skip("sliding_window_pattern")
        return is_sliding(cfg, layer, otherwise=lambda layer: False)
    return (layer + 1) % cfg.count("sliding_window_pattern", default=4) != 0


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    attn = qwen3.with_head_norms(cfg, layer, llama.block(cfg, layer).attn)
    window = cfg.optional_count("sliding_window", default=4096)
    windowed = window is not None and is_windowed(cfg, layer)
    rope = attn.rope if windowed or window is None else None
    return olmo.post_norms(cfg, layer, replace(attn, rope=rope, window=window if windowed else None))


def model(cfg: HFConfig) -> Model:
    base = decoder(cfg, block, rms_norm(cfg, "model.norm"))
    cfg.skip("layer_types", "sliding_window_pattern")  # without a window they say nothing
    return base
