"""What a report knows, gathered from real conversions of tiny models."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polybit.model.sizes import bits_per_weight, layer_sizes
from polybit.model.source import open_model
from polybit.quantizer import convert as conversion
from polybit.quantizer.convert import ConvertOptions, convert
from polybit.quantizer.report.findings import Findings
from unit.quantizer.conftest import Make

MOE = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Findings]:
    """The findings of conversions from now on."""
    found = list[Findings]()
    monkeypatch.setattr(conversion, "write_report", lambda findings, *_: found.append(findings))
    return found


def options(text: Path, **changes: Any) -> ConvertOptions:
    return replace(ConvertOptions(bits=4.5, calibration=str(text), rows=2, length=64, device="cpu"), **changes)


def test_bits_sizes_and_origin(tiny: Path, text: Path, tmp_path: Path, told: list[Findings]) -> None:
    folder = tmp_path / "models--owner--Name" / "snapshots" / "0a1b"
    shutil.copytree(tiny, folder)
    result = convert(folder, tmp_path / "out", options(text))
    (found,) = told
    assert (found.name, found.base_model) == ("Name", "owner/Name")
    assert found.bits == result.bits
    assert found.result_bytes == (result.folder / "output.safetensors").stat().st_size
    assert [m.role for m in found.matrices[:7]] == ["q", "k", "v", "o", "gate", "up", "down"]
    sizes = [size for layer in layer_sizes(open_model(result.folder)) for size in layer]
    assert [m.bits for m in found.matrices] == [size.bpw for size in sizes]
    assert sum(m.num_weights for m in found.matrices) == sum(size.num_weights for size in sizes)
    assert all(m.error is not None and 0 < m.error < 1 for m in found.matrices)
    assert found.predicted is not None
    assert 0 < found.predicted < 1
    assert {"forward", "backward", "quantize", "head", "write", "test"} <= set(found.seconds)
    assert str(tmp_path) not in str((found.settings, found.calibration))


def test_experts_of_a_kind_are_one_row(make_model: Make, text: Path, tmp_path: Path, told: list[Findings]) -> None:
    result = convert(make_model(**MOE), tmp_path / "out", options(text, self_test=False, method="gptq-v2"))
    (found,) = told
    assert [(m.role, m.count) for m in found.matrices[4:7]] == [("gate", 4), ("up", 4), ("down", 4)]
    gates = [size for size in layer_sizes(open_model(result.folder))[0] if size.key.endswith("w1")]
    assert len(gates) == 4
    assert found.matrices[4].bits == bits_per_weight(gates)
    assert (found.matrices[4].error, found.predicted, found.test) == (None, None, None)


def test_a_hidden_folder_has_no_name(tiny: Path, text: Path, tmp_path: Path, told: list[Findings]) -> None:
    shutil.copytree(tiny, tmp_path / ".out.source")
    convert(tmp_path / ".out.source", tmp_path / "Tiny-4.5bpw", options(text, self_test=False, method="gptq-v2"))
    assert (told[0].name, told[0].base_model) == ("Tiny-4.5bpw", None)
