"""Phi-3, 3.5-mini and 4: Llama stored with fused qkv and gate-up, LongRoPE, and a window where the config has one."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, rms_norm
from polybit.arch.fused import with_fused_gate_up, with_fused_qkv
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at, base = f"model.layers.{layer}", llama.block(cfg, layer)
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        cfg.only(key, False)
    for key in ("full_attn_mod", "interpolate_factor"):
        cfg.only(key, 1)
    cfg.optional_count("original_max_position_embeddings")
    attn = with_fused_qkv(base.attn, f"{at}.self_attn.qkv_proj")
    mlp = with_fused_gate_up(llama.mlp(cfg, layer), f"{at}.mlp.gate_up_proj")
    return replace(base, attn=replace(attn, window=cfg.optional_count("sliding_window")), mlp=mlp)


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
