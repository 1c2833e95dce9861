"""The first Yi checkpoints: Llama whose norms are called ln1 and ln2. (Later ones say LlamaForCausalLM.)"""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, rms_norm
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at = f"model.layers.{layer}"
    return replace(llama.block(cfg, layer), attn_norm=rms_norm(cfg, f"{at}.ln1"), mlp_norm=rms_norm(cfg, f"{at}.ln2"))


def model(cfg: HFConfig) -> Model:
    renames = ((".input_layernorm.", ".ln1."), (".post_attention_layernorm.", ".ln2."))
    return replace(decoder(cfg, block, rms_norm(cfg, "model.norm")), renames=renames)
