"""Where numbers stop being numbers: one more pass over a text, looked at after every layer."""

import torch

from polybit.model.device import current
from polybit.model.footprint import CHUNK_TOKENS
from polybit.model.model import Model
from polybit.modules.step import whole_rows


@torch.inference_mode()
def first_broken_layer(model: Model, tokens: list[int]) -> str | None:
    """The part of the model after which something is not finite; None: all is, in the tokens that are looked at."""
    looked_at = tokens[-min(CHUNK_TOKENS, model.max_seq_len) :]
    step, store = whole_rows(1, len(looked_at), model.device)
    x = model.embed(torch.tensor(looked_at, device=model.device), step)
    if not x.isfinite().all():
        return "the embedding"
    layers = [(stage.device, layer) for stage in model.stages for layer in stage.layers]
    for number, (device, layer) in enumerate(layers):
        with current(device):
            x = layer(x.to(device), step.to(device), store)
        if not x.isfinite().all():
            return f"layer {number}"
    return None if model.logits(x[-1:]).isfinite().all() else "the head"
