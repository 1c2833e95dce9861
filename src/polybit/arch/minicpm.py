"""MiniCPM 1 and 2, and 4 with dense attention: Llama with Granite's multipliers under other names."""

from polybit.arch.config import HFConfig
from polybit.arch.decoder import decoder, hidden_size, num_layers, rms_norm
from polybit.arch.granite import scaled_ends, scaled_residuals
from polybit.spec import Model, SequentialBlock


def block(cfg: HFConfig, layer: int) -> SequentialBlock:
    factor = cfg.real("scale_depth", default=1.0) / num_layers(cfg) ** 0.5
    return scaled_residuals(cfg, layer, factor)


def model(cfg: HFConfig) -> Model:
    base = decoder(cfg, block, rms_norm(cfg, "model.norm"), tied=True)
    logits = cfg.count("dim_model_base", default=1) / hidden_size(cfg)
    return scaled_ends(base, cfg.real("scale_emb", default=1.0), logits)
