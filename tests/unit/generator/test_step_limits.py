"""How many tokens of prompts a step reads where others wait: what the device does in a tenth of a second."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from polybit.bench.shapes import read_shape
from polybit.generator.scheduler import Limits
from polybit.generator.step_limits import step_limits

H100 = SimpleNamespace(multi_processor_count=132, major=9)
RTX_4090 = SimpleNamespace(multi_processor_count=128, major=8)


def limits(monkeypatch: pytest.MonkeyPatch, name: str, card: SimpleNamespace | None, max_batch: int = 64, **of_spec):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    described = replace(read_shape(name), **of_spec)
    device = torch.device("cpu" if card is None else "cuda")
    model = SimpleNamespace(spec=described, device=device, max_seq_len=described.max_seq_len)
    return step_limits(model, max_batch)


@pytest.mark.parametrize(
    ("name", "card", "beside"),
    [
        ("llama-8b", H100, 2048 - 64),  # a step's memory is planned for 2,048 tokens, the next ones of others included
        ("llama-8b", RTX_4090, 512),
        ("llama-1b", RTX_4090, 2048 - 64),
        ("qwen-32b", H100, 634),  # 0.1 s at 396e12 operations a second, of 2 * 31.2e9 a token
        ("llama-1b", None, 512),
    ],
)
def test_by_device_and_model(monkeypatch, name, card, beside):
    assert limits(monkeypatch, name, card) == Limits(64, prompt_tokens=2048, tokens_beside=beside)


def test_no_fewer_than_keep_a_device_busy(monkeypatch):
    assert limits(monkeypatch, "llama-8b", H100, max_batch=2000).tokens_beside == 512
    short = limits(monkeypatch, "llama-8b", H100, max_seq_len=256)
    assert (short.prompt_tokens, short.tokens_beside) == (256, 512)
