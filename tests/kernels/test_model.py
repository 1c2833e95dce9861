"""A whole model through each backend: what the modules hand to the operations, and in which order."""

import torch

from closeness import assert_close
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows
from random_model import write_random_model


def test_a_model_agrees_with_the_reference(backend, device, tmp_path) -> None:
    folder = write_random_model(tmp_path, {"head_dim": 24, "intermediate_size": 100, "attention_bias": True})
    tokens = torch.randint(0, 96, (2 * 9,), generator=torch.Generator().manual_seed(0))
    logits = []
    for name, where in (("reference", "cpu"), (backend.NAME, str(device))):
        model = load(open_model(folder, LoadOptions(device=where, dtype="float32", backend=name)))
        logits.append(model.forward(tokens.to(where), *whole_rows(2, 9, model.device)))
    assert_close(logits[1], logits[0], "model")


def test_a_pass_that_asks_for_no_logits(backend, device, tmp_path) -> None:
    """A long prompt in parts: only its last part has a token to predict."""
    folder = write_random_model(tmp_path)
    model = load(open_model(folder, LoadOptions(device=str(device), dtype="float32", backend=backend.NAME)))
    none = torch.empty(0, dtype=torch.int64, device=device)
    logits = model.forward(torch.arange(5, device=device), *whole_rows(1, 5, model.device), logits_at=none)
    assert logits.shape == (0, 96)
