"""DBRX: a fused qkv whose outputs are clamped, LayerNorm without bias, and experts stacked into one tensor a matrix."""

from dataclasses import replace

from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, attention, decoder, gated_mlp, head_shape, hidden_size
from polybit.arch.fused import with_fused_qkv
from polybit.arch.moe import num_experts, sparse_moe
from polybit.arch.rope import read_rope
from polybit.spec import Attention, GatedMlp, LayerNorm, Linear, Model, SequentialBlock, Source, SparseMoe

RENAMES = (
    ("^transformer.blocks.", "model.layers."),
    ("^transformer.wte.", "model.embed_tokens."),
    ("^transformer.norm_f.", "model.norm."),
    (".norm_attn_norm.norm_1.", ".input_layernorm."),
    (".norm_attn_norm.norm_2.", ".post_attention_layernorm."),
    (".norm_attn_norm.attn.Wqkv.", ".self_attn.Wqkv."),
    (".norm_attn_norm.attn.out_proj.", ".self_attn.o_proj."),
    (".ffn.router.layer.", ".block_sparse_moe.gate."),
    (".ffn.experts.mlp.v1", ".block_sparse_moe.experts.v1.weight"),
    (".ffn.experts.mlp.w1", ".block_sparse_moe.experts.w1.weight"),
    (".ffn.experts.mlp.w2", ".block_sparse_moe.experts.w2.weight"),
)


def norm(cfg: HFConfig, key: str) -> LayerNorm:
    return LayerNorm(key, hidden_size(cfg), eps=1e-5)


def attention_part(cfg: HFConfig, layer: int) -> Attention:
    own = cfg.child("attn_config")
    shape = head_shape(cfg, kv_heads=own.count("kv_n_heads", default=1))
    cfg.skip("num_key_value_heads")  # a copy of kv_n_heads
    at = f"model.layers.{layer}.self_attn"
    rope = read_rope(cfg, shape.dim, theta=own.real("rope_theta", default=10000.0))
    attn = with_fused_qkv(attention(at, shape, rope), f"{at}.Wqkv")
    return replace(attn, clip_qkv=own.optional_real("clip_qkv"))


def expert(cfg: HFConfig, own: HFConfig, layer: int, index: int) -> GatedMlp:
    """w1, v1 and w2 are stored [experts * width, hidden]; w2 is used the other way round than a linear layer."""
    at, width = f"model.layers.{layer}.block_sparse_moe.experts", own.count("ffn_hidden_size", default=3584)
    act_fn = own.optional_child("ffn_act_fn")
    act = activation(act_fn or own, "name")
    mlp = gated_mlp(f"{at}.{index}", hidden_size(cfg), width, act, names=("w1", "v1", "w2"))
    start, stop = index * width, (index + 1) * width

    def placed(linear: Linear, name: str, transposed: bool = False) -> Linear:
        return replace(linear, source=Source(f"{at}.{name}", start, stop, transposed=transposed))

    return replace(
        mlp, gate=placed(mlp.gate, "w1"), up=placed(mlp.up, "v1"), down=placed(mlp.down, "w2", transposed=True)
    )


def experts(cfg: HFConfig, layer: int) -> SparseMoe:
    own = cfg.child("ffn_config")
    own.skip("hidden_size")  # a copy of d_model
    each = tuple(expert(cfg, own, layer, index) for index in range(num_experts(own)))
    norm_p = own.optional_real("moe_normalize_expert_weights", default=1.0)
    if norm_p not in (None, 1.0):
        raise own.error("moe_normalize_expert_weights", norm_p, "1 or null")
    return sparse_moe(own, f"model.layers.{layer}.block_sparse_moe.gate", each, renormalise=norm_p is not None)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at = f"model.layers.{layer}"
    return SequentialBlock(
        attn_norm=norm(cfg, f"{at}.input_layernorm"),
        attn=attention_part(cfg, layer),
        attn_post_norm=None,
        mlp_norm=norm(cfg, f"{at}.post_attention_layernorm"),
        mlp=experts(cfg, layer),
        mlp_post_norm=None,
    )


def model(cfg: HFConfig) -> Model:
    return replace(decoder(cfg, block, norm(cfg, "model.norm")), renames=RENAMES)
