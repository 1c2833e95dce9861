"""Cohere's Command R7B and A: three windowed layers with rope to one full layer without any."""

from dataclasses import replace

from polybit.arch import cohere
from polybit.arch.config import HFConfig
from polybit.arch.decoder import is_sliding
from polybit.spec import Model, ParallelBlock

# What the published configs say about themselves and cannot be otherwise here.
FIXED = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
}


def block(cfg: HFConfig, layer: int) -> ParallelBlock:
    base = cohere.block(cfg, layer)
    for key, value in FIXED.items():
        cfg.only(key, value)
    period = cfg.count("sliding_window_pattern", "_sliding_window_pattern", "layer_switch", default=4)
    window = cfg.optional_count("sliding_window", default=4096)
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: (layer + 1) % period != 0)
    rope = base.attn.rope if sliding and window else None
    return replace(base, attn=replace(base.attn, rope=rope, window=window if sliding else None))


def model(cfg: HFConfig) -> Model:
    return cohere.whole(cfg, block)
