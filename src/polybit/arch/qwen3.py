"""Qwen3: Qwen2 without biases and with an RMSNorm on each head of q and k."""

from dataclasses import replace

from polybit.arch import llama, qwen2
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, rms_norm
from polybit.spec import Attention, Model, RMSNorm, SequentialBlock


def with_head_norms(cfg: HFConfig, layer: int, attn: Attention) -> Attention:
    at, eps = f"model.layers.{layer}.self_attn", cfg.real("rms_norm_eps", default=1e-6)
    q_norm, k_norm = (RMSNorm(f"{at}.{name}", attn.head_dim, eps) for name in ("q_norm", "k_norm"))
    return replace(attn, q_norm=q_norm, k_norm=k_norm)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base = llama.block(cfg, layer)
    attn = replace(with_head_norms(cfg, layer, base.attn), window=qwen2.window(cfg, layer))
    return replace(base, attn=attn)


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
