"""Gemma 1: norms that store weight - 1, embeddings scaled by sqrt(hidden), GELU, a tied head."""

from collections.abc import Callable
from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import activation, decoder, hidden_size, rms_norm
from polybit.spec import Activation, Block, GatedMlp, Model, RMSNorm, SequentialBlock


def norm(cfg: HFConfig, key: str) -> RMSNorm:
    return replace(rms_norm(cfg, key), offset=1.0)


def mlp(cfg: HFConfig, layer: int) -> GatedMlp:
    chosen = activation(cfg, "hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    if chosen is Activation.GELU:  # the first configs say "gelu" and mean its tanh form
        chosen = Activation.GELU_TANH
    return replace(llama.mlp(cfg, layer), activation=chosen)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    at = f"model.layers.{layer}"
    cfg.only("use_bidirectional_attention", False)
    return replace(
        llama.block(cfg, layer),
        attn_norm=norm(cfg, f"{at}.input_layernorm"),
        mlp_norm=norm(cfg, f"{at}.post_attention_layernorm"),
        mlp=mlp(cfg, layer),
    )


def whole(cfg: HFConfig, block: Callable[[HFConfig, int], Block]) -> Model:
    """What all Gemmas have around their blocks."""
    base = decoder(cfg, block, norm(cfg, "model.norm"), tied=True)
    return replace(base, embedding=replace(base.embedding, scale=hidden_size(cfg) ** 0.5), needs_bos=True)


def model(cfg: HFConfig) -> Model:
    return whole(cfg, block)
