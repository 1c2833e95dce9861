"""Qwen3-MoE: Qwen3 whose MLPs are mixtures of experts, on all layers or on some."""

from dataclasses import replace

from polybit.arch import llama, qwen3
from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, decoder, gated_mlp, hidden_size, rms_norm
from polybit.arch.moe import num_experts, sparse_moe
from polybit.spec import Model, SequentialBlock, SparseMoe


def experts(cfg: HFConfig, layer: int) -> SparseMoe:
    at, hidden, width = f"model.layers.{layer}.mlp", hidden_size(cfg), cfg.count("moe_intermediate_size")
    each = tuple(
        gated_mlp(f"{at}.experts.{expert}", hidden, width, activation(cfg)) for expert in range(num_experts(cfg))
    )
    return sparse_moe(cfg, f"{at}.gate", each, renormalise=cfg.flag("norm_topk_prob", default=False))


def is_sparse(cfg: HFConfig, layer: int) -> bool:
    dense, step = cfg.counts("mlp_only_layers") or (), cfg.count("decoder_sparse_step", default=1)
    return layer not in dense and (layer + 1) % step == 0


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base = llama.block(cfg, layer)
    window = cfg.optional_count("sliding_window") if cfg.flag("use_sliding_window", default=False) else None
    cfg.skip("sliding_window", "max_window_layers")  # the window is on all layers here, or on none
    attn = replace(qwen3.with_head_norms(cfg, layer, base.attn), window=window)
    return replace(base, attn=attn, mlp=experts(cfg, layer) if is_sparse(cfg, layer) else base.mlp)


def model(cfg: HFConfig) -> Model:
    return decoder(cfg, block, rms_norm(cfg, "model.norm"))
