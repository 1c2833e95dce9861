"""Cohere's Command R: attention and MLP side by side behind one LayerNorm, interleaved rope, scaled logits."""

from collections.abc import Callable
from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, layer_norm
from polybit.arch.rope import read_rope
from polybit.spec import Attention, Block, LayerNorm, Model, ParallelBlock


def norm(cfg: HFConfig, key: str) -> LayerNorm:
    return layer_norm(cfg, key, "layer_norm_eps", bias=False)


def with_head_norms(cfg: HFConfig, layer: int, attn: Attention) -> Attention:
    """Each head has weights of its own: [heads, head dim]."""
    at, eps = f"model.layers.{layer}.self_attn", cfg.real("layer_norm_eps", default=1e-5)
    q_norm, k_norm = (LayerNorm(f"{at}.{name}", attn.head_dim, eps) for name in ("q_norm", "k_norm"))
    return replace(attn, q_norm=q_norm, k_norm=k_norm)


def block(cfg: HFConfig, layer: int) -> ParallelBlock:
    base = llama.block(cfg, layer)
    attn = replace(base.attn, rope=read_rope(cfg, base.attn.head_dim, interleaved=True))
    if cfg.flag("use_qk_norm", default=False):
        attn = with_head_norms(cfg, layer, attn)
    return ParallelBlock(norm(cfg, f"model.layers.{layer}.input_layernorm"), attn, llama.mlp(cfg, layer))


def whole(cfg: HFConfig, block: Callable[[HFConfig, int], Block]) -> Model:
    base = decoder(cfg, block, norm(cfg, "model.norm"), tied=True)
    linear = replace(base.head.linear, prescale=cfg.real("logit_scale", default=0.0625))
    return replace(base, head=replace(base.head, linear=linear), needs_bos=True)


def model(cfg: HFConfig) -> Model:
    return whole(cfg, block)
