"""A GPU says what the CPU says, and converts what the CPU can read. Needs an accelerator: pytest -m gpu."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import polybit
from closeness import assert_close
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows
from polybit.quantizer import part
from random_model import write_random_model

pytestmark = pytest.mark.gpu


def _logits(folder: Path, device: str) -> Tensor:
    """In float32; the CPU by the reference."""
    backend = "reference" if device == "cpu" else None
    model = load(open_model(folder, LoadOptions(device=device, dtype="float32", backend=backend)))
    tokens = torch.arange(90, device=model.device)
    return model.forward(tokens, *whole_rows(3, 30, model.device))


def test_a_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path)
    assert_close(_logits(folder, "cuda"), _logits(folder, "cpu"), "model")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    from oracle.tiny import save_tiny

    save_tiny("LlamaForCausalLM", tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("unpacked", "settings"),
    [(False, {}), (True, {"tune": True}), (False, {"method": "gptq-v2", "measure_length": 32})],
)
def test_a_gpu_converts_and_generates(source: Path, tmp_path: Path, unpacked: bool, settings: dict[str, Any]) -> None:
    polybit.convert(source, tmp_path / "exl2", bits=4.0, rows=2, length=32, device="cuda", **settings)
    assert_close(_logits(tmp_path / "exl2", "cuda"), _logits(tmp_path / "exl2", "cpu"), "model")
    engine = polybit.load(tmp_path / "exl2", device="cuda", unpacked=unpacked)
    assert engine.model.dtype == torch.float16
    assert engine.generate("Hello", max_tokens=5, ignore_eos=True).tokens


@pytest.mark.parametrize("method", ["gptq-loss", "gptq-v2"])
def test_states_in_ram_make_the_same_model(
    source: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[dict[str, Tensor]]()
    for limit in (part.RESIDENT_BYTES, 0):
        monkeypatch.setattr(part, "RESIDENT_BYTES", limit)
        folder, short = tmp_path / f"{limit}", {"rows": 3, "length": 32, "measure_length": 32}
        polybit.convert(source, folder, bits=4.0, method=method, device="cuda", **short)
        made.append(load_file(folder / "output.safetensors"))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())


@pytest.mark.parametrize("method", ["gptq-loss", "gptq-v2"])
def test_two_gpus_convert_to_the_bytes_of_one(tmp_path: Path, method: str) -> None:
    from oracle.tiny import save_tiny

    if torch.cuda.device_count() < 2 or torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("no second card of the same kind")
    save_tiny("Qwen2ForCausalLM", tmp_path / "source")
    weights = {}
    for devices in ("cuda:0,cuda:1", "cuda:0", "cuda:1"):
        out = tmp_path / devices.replace(":", "")
        polybit.convert(tmp_path / "source", out, bits=4.0, rows=2, length=32, devices=devices, method=method)
        weights[devices] = (out / "output.safetensors").read_bytes()
    assert weights["cuda:0,cuda:1"] == weights["cuda:0"]
    assert weights["cuda:1"] == weights["cuda:0"]
