"""Tiny model folders of random weights, written from the spec alone: no transformers, milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from polybit import arch, spec
from polybit.model.source import vector_names

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write_random_model(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A folder of config.json and model.safetensors (fp16) with every tensor that the config's spec names."""
    config = {**TINY_LLAMA, **(config or {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(arch.read_model(config, where="test"), seed), folder / "model.safetensors")
    return folder


def random_tensors(model: spec.Model, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in (*(norm for block in model.blocks for norm in spec.block_norms(block)), model.norm):
        shapes[f"{norm.key}.weight"] = (norm.width,)
    for embedding in (model.embedding, model.positions):
        if embedding is not None:
            shapes[f"{embedding.key}.weight"] = (embedding.num_rows, embedding.width)
    for linear in (*model.linears, *(() if model.head.tied else (model.head.linear,))):
        shapes[f"{linear.key}.weight"] = (linear.out_features, linear.in_features)
        if linear.bias:
            shapes[f"{linear.key}.bias"] = (linear.out_features,)
    for block in model.blocks:
        if isinstance(block.mlp, spec.SparseMoe):
            shapes[f"{block.mlp.router_key}.weight"] = (len(block.mlp.experts), model.hidden_size)
    for name in set(vector_names(model)) - set(shapes):
        shapes[name] = (model.hidden_size,)
    return {
        name: (torch.randn(shape, generator=random) / shape[-1] ** 0.5).half()
        if len(shape) > 1
        else (1 + 0.1 * torch.randn(shape, generator=random)).half()
        for name, shape in sorted(shapes.items())
    }
