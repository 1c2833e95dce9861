"""Index: Llama whose head may have rows of length 1 (`norm_head`)."""

from dataclasses import replace

from polybit.arch import llama
from polybit.arch.config import HFConfig
from polybit.spec import Model


def model(cfg: HFConfig) -> Model:
    base = llama.model(cfg)
    return replace(base, head=replace(base.head, normalise_rows=cfg.flag("norm_head", default=False)))
