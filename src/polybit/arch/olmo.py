"""OLMo 2 and 3: norms after attention and MLP instead of before, and over all heads of q and k at once."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, is_sliding, rms_norm
from polybit.arch.rope import read_rope
from polybit.spec import Attention, Model, RMSNorm, Rope, SequentialBlock, Unscaled


def post_norms(cfg: HFConfig, layer: int, attn: Attention) -> SequentialBlock:
    """Llama's block with `attn`, its norms behind the branches."""
    at = f"model.layers.{layer}"
    return SequentialBlock(
        attn_norm=None,
        attn=attn,
        attn_post_norm=rms_norm(cfg, f"{at}.post_attention_layernorm"),
        mlp_norm=None,
        mlp=llama.mlp(cfg, layer),
        mlp_post_norm=rms_norm(cfg, f"{at}.post_feedforward_layernorm"),
    )


def block2(cfg: HFConfig, layer: int) -> SequentialBlock:
    at, attn = f"model.layers.{layer}.self_attn", llama.block(cfg, layer).attn
    eps = cfg.real("rms_norm_eps", default=1e-5)
    q_norm, k_norm = (
        RMSNorm(f"{at}.q_norm", attn.q.out_features, eps),
        RMSNorm(f"{at}.k_norm", attn.k.out_features, eps),
    )
    return post_norms(cfg, layer, replace(attn, q_norm=q_norm, k_norm=k_norm))


def rope3(cfg: HFConfig, head_dim: int, sliding: bool) -> Rope:
    """Windowed layers are never scaled."""
    layer_type = "sliding_attention" if sliding else "full_attention"
    rope = read_rope(cfg, head_dim, layer_type=layer_type, theta=500000.0)
    return replace(rope, scaling=Unscaled()) if sliding and "rope_parameters" not in cfg else rope


def block3(cfg: HFConfig, layer: int) -> SequentialBlock:
    base, window = block2(cfg, layer), cfg.optional_count("sliding_window", default=4096)
    sliding = is_sliding(cfg, layer, otherwise=lambda layer: (layer + 1) % 4 != 0)
    rope = rope3(cfg, base.attn.head_dim, sliding)
    return replace(base, attn=replace(base.attn, rope=rope, window=window if sliding else None))


def model2(cfg: HFConfig) -> Model:
    return decoder(cfg, block2, rms_norm(cfg, "model.norm"))


def model3(cfg: HFConfig) -> Model:
    return decoder(cfg, block3, rms_norm(cfg, "model.norm"))
