"""Gemma 3: five windowed layers to one full one, each kind with its own rope, and norms on the heads of q and k."""

from dataclasses import replace

from polybit.arch import gemma, gemma2
from polybit.arch.config import HFConfig
from polybit.arch.decoder import is_sliding
from polybit.arch.rope import read_rope
from polybit.spec import Model, RMSNorm, Rope, SequentialBlock

# What transformers takes where a text_config is silent; the published multimodal configs are.
DEFAULTS = {
    "vocab_size": 262208,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def rope(cfg: HFConfig, head_dim: int, sliding: bool) -> Rope:
    """Only full layers are scaled; older configs keep the windowed layers' theta under a key of its own."""
    local = cfg.real("rope_local_base_freq", default=10000.0)
    full = read_rope(cfg, head_dim, layer_type="full_attention", theta=1e6)
    if not sliding:
        return full
    if "rope_parameters" in cfg:
        return read_rope(cfg, head_dim, layer_type="sliding_attention", theta=local)
    return Rope(local, full.dim)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base, eps = gemma2.sandwich(cfg, layer), cfg.real("rms_norm_eps", default=1e-6)
    period = cfg.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: (layer + 1) % period != 0)
    window = cfg.optional_count("sliding_window", default=4096)
    at, dim = f"model.layers.{layer}.self_attn", base.attn.head_dim
    attn = replace(
        base.attn,
        rope=rope(cfg, dim, sliding),
        window=window if sliding else None,
        q_norm=RMSNorm(f"{at}.q_norm", dim, eps, offset=1.0),
        k_norm=RMSNorm(f"{at}.k_norm", dim, eps, offset=1.0),
    )
    return replace(base, attn=attn)


def model(cfg: HFConfig) -> Model:
    base = gemma.whole(cfg, block)
    softcap = cfg.optional_real("final_logit_softcapping")
    return replace(base, head=replace(base.head, softcap=softcap), fp32_residual=True)
