"""A model block by block computes what the same model computes whole."""

from pathlib import Path
from typing import Any

import pytest
import torch

from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.model.streamed import StreamedModel
from polybit.modules.step import whole_rows
from random_model import write_random_model

PARALLEL = {"architectures": ["CohereForCausalLM"], "model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 0.25}


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}, PARALLEL | {"tie_word_embeddings": True}])
def test_the_same_logits_as_the_whole_model(config: dict[str, Any], tmp_path: Path) -> None:
    source, device = open_model(write_random_model(tmp_path / "m", config), LoadOptions("cpu")), torch.device("cpu")
    tokens = torch.randint(96, (34,), generator=torch.Generator().manual_seed(3))
    expected = load(source).forward(tokens, *whole_rows(2, 17, device))

    streamed = StreamedModel.of(source, device)
    shell, (step, store) = streamed.shell(), whole_rows(2, 17, device)
    x = shell.embed(tokens, step)
    for index, block in enumerate(source.spec.blocks):
        layer, matrices = streamed.block(index)
        assert set(matrices) == {linear.key for linear in (*block.attn.linears, *block.mlp.linears)}
        x = layer(x, step, store)
    torch.testing.assert_close(shell.logits(x), expected, rtol=1e-5, atol=1e-5)
