"""Granite 3: Llama with multipliers on embeddings, attention logits, residual branches and final logits."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, rms_norm
from polybit.spec import Model, SequentialBlock


def scaled_residuals(cfg: HFConfig, layer: int, factor: float) -> SequentialBlock:
    """Llama's block with both branches times `factor`, through the matrices that end them."""
    block, mlp = llama.block(cfg, layer), llama.mlp(cfg, layer)
    attn = block.attn
    return replace(
        block,
        attn=replace(attn, o=replace(attn.o, prescale=factor)),
        mlp=replace(mlp, down=replace(mlp.down, prescale=factor)),
    )


def scaled_ends(model: Model, embedding: float, logits: float) -> Model:
    head = replace(model.head, linear=replace(model.head.linear, prescale=logits))
    return replace(model, embedding=replace(model.embedding, scale=embedding), head=head)


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    base = scaled_residuals(cfg, layer, cfg.real("residual_multiplier", default=1.0))
    return replace(base, attn=replace(base.attn, scale=cfg.real("attention_multiplier", default=1.0)))


def model(cfg: HFConfig) -> Model:
    base = decoder(cfg, block, rms_norm(cfg, "model.norm"))
    return scaled_ends(base, cfg.real("embedding_multiplier", default=1.0), 1 / cfg.real("logits_scaling", default=1.0))
