"""Phi-1, 1.5 and 2: attention and a GELU MLP side by side behind one LayerNorm, biases everywhere, partial rope."""

from dataclasses import replace

from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, attention, decoder, head_shape, layer_norm, plain_mlp
from polybit.arch.rope import read_rope
from polybit.spec import LayerNorm, Model, ParallelBlock


def norm(cfg: HFConfig, key: str) -> LayerNorm:
    return layer_norm(cfg, key, "layer_norm_eps", bias=True)


def block(cfg: HFConfig, layer: int) -> ParallelBlock:
    at, shape = f"model.layers.{layer}", head_shape(cfg)
    cfg.only("qk_layernorm", False)
    rope = read_rope(cfg, shape.dim, partial=0.5)
    attn = attention(f"{at}.self_attn", shape, rope, qkv_bias=True, o_bias=True)
    attn = replace(attn, o=replace(attn.o, key=f"{at}.self_attn.dense"))
    width, act = cfg.count("intermediate_size"), activation(cfg, default="gelu_new")
    mlp = plain_mlp(f"{at}.mlp", shape.hidden, width, act, bias=True, names=("fc1", "fc2"))
    return ParallelBlock(norm(cfg, f"{at}.input_layernorm"), attn, mlp)


def model(cfg: HFConfig) -> Model:
    cfg.only("tie_word_embeddings", False)  # the head has a bias of its own
    base = decoder(cfg, block, norm(cfg, "model.final_layernorm"))
    return replace(base, head=replace(base.head, linear=replace(base.head.linear, bias=True)))
