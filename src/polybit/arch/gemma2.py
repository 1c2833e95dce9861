"""Gemma 2: norms after attention and MLP too, soft caps on attention and final logits, a window on even layers."""

from dataclasses import replace

from polybit.arch import gemma
from polybit.arch.config import HFConfig
from polybit.arch.decoder import is_sliding
from polybit.arch.gemma import norm
from polybit.spec import Model, SequentialBlock


def sandwich(cfg: HFConfig, layer: int) -> SequentialBlock:
    """Gemma's block between four norms, with the logit scale and cap of Gemma 2 and 3."""
    at, base = f"model.layers.{layer}", gemma.block(cfg, layer)
    scale = cfg.real("query_pre_attn_scalar", default=256) ** -0.5
    return SequentialBlock(
        attn_norm=base.attn_norm,
        attn=replace(base.attn, scale=scale, softcap=cfg.optional_real("attn_logit_softcapping")),
        attn_post_norm=norm(cfg, f"{at}.post_attention_layernorm"),
        mlp_norm=norm(cfg, f"{at}.pre_feedforward_layernorm"),
        mlp=base.mlp,
        mlp_post_norm=norm(cfg, f"{at}.post_feedforward_layernorm"),
    )


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base, window = sandwich(cfg, layer), cfg.optional_count("sliding_window", default=4096)
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: layer % 2 == 0)
    softcap = cfg.optional_real("attn_logit_softcapping", default=50.0)
    return replace(base, attn=replace(base.attn, softcap=softcap, window=window if sliding else None))


def model(cfg: HFConfig) -> Model:
    base = gemma.whole(cfg, block)
    softcap = cfg.optional_real("final_logit_softcapping", default=30.0)
    return replace(base, head=replace(base.head, softcap=softcap), fp32_residual=True)
