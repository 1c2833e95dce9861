"""SmolLM3: Llama without rope on every fourth layer."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, is_sliding, num_layers, rms_norm
from polybit.arch.rope import read_rope
from polybit.spec import Model, SequentialBlock


def has_rope(cfg: HFConfig, layer: int) -> bool:
    """By `no_rope_layers`, which holds 1 where there IS rope; else by the interval."""
    interval = cfg.count("no_rope_layer_interval", default=4)
    layers = cfg.counts("no_rope_layers")
    if layers is None:
        return (layer + 1) % interval != 0
    if len(layers) < num_layers(cfg):
        raise cfg.error("no_rope_layers", list(layers), f"an entry for each of {num_layers(cfg)} layers")
    return layers[layer] != 0


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base, rotated = llama.block(cfg, layer), has_rope(cfg, layer)
    rope = read_rope(cfg, base.attn.head_dim, theta=2e6) if rotated else None
    window = cfg.optional_count("sliding_window") if cfg.flag("use_sliding_window", default=False) else None
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: not rotated)
    cfg.skip("sliding_window", "max_window_layers")
    return replace(base, attn=replace(base.attn, rope=rope, window=window if sliding else None))


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"), tied=True)
