"""GLM-4 in two generations: interleaved rope on half of each head, fused gate and up; the later has more norms."""

from dataclasses import replace

from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, attention, decoder, gated_mlp, head_shape, rms_norm
from polybit.arch.fused import with_fused_gate_up
from polybit.arch.rope import read_rope
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at, shape = f"model.layers.{layer}", head_shape(cfg)
    rope = read_rope(cfg, shape.dim, partial=0.5, interleaved=True)
    mlp = gated_mlp(f"{at}.mlp", shape.hidden, cfg.count("intermediate_size"), activation(cfg))
    return SequentialBlock(
        attn_norm=rms_norm(cfg, f"{at}.input_layernorm"),
        attn=attention(f"{at}.self_attn", shape, rope, qkv_bias=cfg.flag("attention_bias", default=True)),
        attn_post_norm=None,
        mlp_norm=rms_norm(cfg, f"{at}.post_attention_layernorm"),
        mlp=with_fused_gate_up(mlp, f"{at}.mlp.gate_up_proj"),
        mlp_post_norm=None,
    )


def sandwich_block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at = f"model.layers.{layer}"
    return replace(
        block(cfg, layer),
        attn_post_norm=rms_norm(cfg, f"{at}.post_self_attn_layernorm"),
        mlp_post_norm=rms_norm(cfg, f"{at}.post_mlp_layernorm"),
    )


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))


def sandwich_model(cfg: HFConfig) -> Model:
    return decoder(cfg, sandwich_block, rms_norm(cfg, "model.norm"))
