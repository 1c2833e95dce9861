"""Rope tables against transformers' frequencies, at lengths that the tiny models do not reach."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from polybit.arch import read_model
from polybit.modules.rope import RopeTable

LENGTH = 4096  # max_position_embeddings
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "longrope": {
        "short_factor": [1.0 + 0.01 * i for i in range(32)],
        "long_factor": [1.0 + i for i in range(32)],
        "original_max_position_embeddings": 1024,
        "factor": 4.0,
    },
}


@pytest.mark.parametrize("max_seq_len", [512, 4096, 16384])
@pytest.mark.parametrize("kind", SCALINGS)
def test_tables_equal_transformers(kind: str, max_seq_len: int) -> None:
    parameters = {"rope_type": kind, "rope_theta": 500000.0, **SCALINGS[kind]}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=LENGTH, rope_parameters=parameters
    )
    spec = read_model(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, "config.json")
    rope = spec.blocks[0].attn.rope
    assert rope is not None
    positions = torch.arange(max_seq_len)
    cos, sin = (rows[:max_seq_len] for rows in RopeTable(rope, max_seq_len, torch.device("cpu")).up_to(max_seq_len))
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=max_seq_len)
    angles = positions[:, None] * frequencies
    torch.testing.assert_close(cos, angles.cos() * factor, rtol=0, atol=2e-3)
    torch.testing.assert_close(sin, angles.sin() * factor, rtol=0, atol=2e-3)
    assert (cos - angles.cos() * factor).norm() < 1e-4 * cos.norm()
