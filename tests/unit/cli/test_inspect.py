"""`polybit inspect`: figures that can be checked by hand."""

import json
from pathlib import Path

from polybit.cli.inspect import BAR_WIDTH, bar
from unit.cli.program import Polybit


def test_json_of_an_unquantized_model(polybit_cli: Polybit, model_folder: Path) -> None:
    report = json.loads(polybit_cli("inspect", model_folder, "--json", "--context", "100", "--device", "cpu").out)
    assert report["decoder_bpw"] == report["head_bpw"] == 16.0
    assert report["decoder_weights"] == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert [layer["bpw"] for layer in report["layers"]] == [16.0, 16.0]
    memory = report["memory"]
    assert memory["cache_bytes"] == 100 * 2 * (2 * 2 * 16) * 4  # layers, K and V of two heads of 16, float32
    assert memory["total_bytes"] == memory["weights_bytes"] + memory["cache_bytes"]


def test_tables_for_people(polybit_cli: Polybit, model_folder: Path) -> None:
    layers = polybit_cli("inspect", model_folder, "--device", "cpu").out
    assert "16.00" in layers
    assert "LlamaForCausalLM, 2 layers of 64" in layers
    matrices = polybit_cli("inspect", model_folder, "--matrices", "--device", "cpu").out
    assert "model.layers.1.mlp.down_proj" in matrices


def test_bars_are_in_proportion_and_end_at_eight_bits() -> None:
    assert [len(bar(bits)) for bits in (0, 2, 4, 8, 16)] == [0, BAR_WIDTH // 4, BAR_WIDTH // 2, BAR_WIDTH, BAR_WIDTH]
