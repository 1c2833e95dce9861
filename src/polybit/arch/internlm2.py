"""InternLM2 and 2.5: Llama with names of its own and q, k and v packed by key-value head."""

from dataclasses import replace

from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, attention, decoder, gated_mlp, head_shape, rms_norm
from polybit.arch.fused import with_fused_qkv
from polybit.arch.rope import read_rope
from polybit.spec import Model, SequentialBlock

RENAMES = (
    ("^model.tok_embeddings.", "model.embed_tokens."),
    ("^output.", "lm_head."),
    (".attention.wqkv.", ".self_attn.wqkv."),
    (".attention.wo.", ".self_attn.o_proj."),
)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at, shape, bias = f"model.layers.{layer}", head_shape(cfg), cfg.flag("bias", default=True)
    width = cfg.count("intermediate_size")
    attn = attention(f"{at}.self_attn", shape, read_rope(cfg, shape.dim), bias, bias)
    return SequentialBlock(
        attn_norm=rms_norm(cfg, f"{at}.attention_norm"),
        attn=with_fused_qkv(attn, f"{at}.self_attn.wqkv", runs=shape.kv_heads),
        attn_post_norm=None,
        mlp_norm=rms_norm(cfg, f"{at}.ffn_norm"),
        mlp=gated_mlp(f"{at}.feed_forward", shape.hidden, width, activation(cfg), names=("w1", "w3", "w2")),
        mlp_post_norm=None,
    )


def model(cfg: HFConfig) -> Model:
    return replace(decoder(cfg, block, rms_norm(cfg, "model.norm")), renames=RENAMES)
