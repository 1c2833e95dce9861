"""Mixtral: Mistral with a mixture of experts."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, decoder, gated_mlp, hidden_size, rms_norm
from polybit.arch.moe import num_experts, sparse_moe
from polybit.spec import Model, SequentialBlock, SparseMoe

NAMES = ("w1", "w3", "w2")  # gate, up, down


def experts(cfg: HFConfig, layer: int) -> SparseMoe:
    at, hidden, width = f"model.layers.{layer}.block_sparse_moe", hidden_size(cfg), cfg.count("intermediate_size")
    each = tuple(
        gated_mlp(f"{at}.experts.{expert}", hidden, width, activation(cfg), names=NAMES)
        for expert in range(num_experts(cfg))
    )
    return sparse_moe(cfg, f"{at}.gate", each, renormalise=True)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base = llama.block(cfg, layer)
    attn = replace(base.attn, window=cfg.optional_count("sliding_window"))
    return replace(base, attn=attn, mlp=experts(cfg, layer))


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
