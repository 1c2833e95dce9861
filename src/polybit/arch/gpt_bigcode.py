"""GPTBigCode (SantaCoder, StarCoder 1): GPT-2 with ordinary matrices, and one key-value head for all queries."""

from polybit.arch import gpt2
from polybit.arch.config import HFConfig
from polybit.arch.decoder import attention, head_shape
from polybit.arch.fused import with_fused_qkv
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    """Without `multi_query` the fused matrix holds q, k and v of each head in turn."""
    shared = cfg.flag("multi_query", default=True)
    cfg.skip("num_key_value_heads")  # follows from multi_query
    shape = head_shape(cfg, kv_heads=1 if shared else None)
    at = f"model.layers.{layer}.self_attn"
    attn = attention(at, shape, rope=None, qkv_bias=True, o_bias=True)
    attn = with_fused_qkv(attn, f"{at}.c_attn", runs=1 if shared else shape.heads)
    return gpt2.block_of(cfg, layer, attn, gpt2.mlp(cfg, layer))


def model(cfg: HFConfig) -> Model:
    return gpt2.whole(cfg, block)
