"""`polybit inspect`: figures that can be checked by hand."""

import json
from pathlib import Path

from polybit.cli.inspect import BAR_WIDTH, bar
from random_model import write_random_model
from unit.cli.program import Polybit
from unit.text.folders import byte_level


def test_json_of_an_unquantized_model(polybit_cli: Polybit, model_folder: Path) -> None:
    report = json.loads(polybit_cli("inspect", model_folder, "--json", "-c", "300", "--device", "cpu").out)
    assert report["decoder_bpw"] == report["head_bpw"] == 16.0
    assert report["decoder_weights"] == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert [layer["bpw"] for layer in report["layers"]] == [16.0, 16.0]
    memory = report["memory"]
    (device,) = memory["devices"]
    assert memory["cache_tokens"] == 512  # two pages
    assert device["cache_bytes"] == 512 * 2 * (2 * 2 * 16) * 4  # layers, K and V of two heads of 16, float32
    assert device["total_bytes"] == sum(device[f"{part}_bytes"] for part in ("weights", "cache", "scratch"))
    assert device["layers"] == [0, 1]


def test_a_quantized_cache_counts_its_scales(polybit_cli: Polybit, model_folder: Path) -> None:
    found = polybit_cli("inspect", model_folder, "--plan", "--json", "-c", "300", "--device", "cpu", "--cache", "q6")
    (device,) = json.loads(found.out)["devices"]
    assert device["cache_bytes"] == 512 * 2 * (2 * 16) * (8 + 4 + 2 * 16 / 16) / 8  # layers, heads of 16, bits


def test_an_unknown_cache_is_refused(polybit_cli: Polybit, model_folder: Path) -> None:
    found = polybit_cli("inspect", model_folder, "--plan", "--cache", "q5")
    assert found.code == 2
    assert "cache is 'q5', expected fp16, q8, q6, q4" in found.err


def test_tables_for_people(polybit_cli: Polybit, model_folder: Path) -> None:
    layers = polybit_cli("inspect", model_folder, "--device", "cpu").out
    assert "16.00" in layers
    assert "LlamaForCausalLM, 2 layers of 64" in layers
    matrices = polybit_cli("inspect", model_folder, "--matrices", "--device", "cpu").out
    assert "model.layers.1.mlp.down_proj" in matrices


def test_bars_are_in_proportion_and_end_at_eight_bits() -> None:
    assert [len(bar(bits)) for bits in (0, 2, 4, 8, 16)] == [0, BAR_WIDTH // 4, BAR_WIDTH // 2, BAR_WIDTH, BAR_WIDTH]


def test_a_plan_for_cards_that_are_not_here(polybit_cli: Polybit, model_folder: Path) -> None:
    found = polybit_cli("inspect", model_folder, "--plan", "--gpu-split", "0,24", "--json")
    plan = json.loads(found.out)
    (device,) = plan["devices"]
    assert device["device"] == "cuda:1"
    assert device["free_bytes"] == 23.5 * 2**30
    assert plan["longest_cache_tokens"] == plan["cache_tokens"] == 512
    table = polybit_cli("inspect", model_folder, "--plan", "--gpu-split", "24").out
    for words in ("cuda:0", "0-1", "work space", "23.50 GiB", "512 tokens; 512 would fit"):
        assert words in table


def test_a_draft_is_planned_first_and_the_model_into_what_it_leaves(polybit_cli: Polybit, model_folder: Path) -> None:
    asked = ("inspect", model_folder, "--plan", "--gpu-split", "24", "-c", "512", "--draft", model_folder)
    plan = json.loads(polybit_cli(*asked, "--json").out)
    (device,), draft = plan["devices"], plan["draft"]
    alone = json.loads(polybit_cli(*asked[:-2], "--json").out)
    assert draft["devices"] == alone["devices"]
    assert draft["cache_tokens"] == plan["cache_tokens"] == 512
    assert device["free_bytes"] == 23.5 * 2**30 - draft["devices"][0]["total_bytes"]
    assert alone["draft"] is None
    shown = " ".join(polybit_cli(*asked).out.split())
    assert "cache 512 tokens draft" in shown
    assert "would fit" not in shown
    assert "draft" in json.loads(polybit_cli("inspect", model_folder, "--json", "--draft", model_folder).out)["memory"]


def test_a_draft_with_another_vocabulary_is_refused(polybit_cli: Polybit, model_folder: Path, tmp_path: Path) -> None:
    other = byte_level(write_random_model(tmp_path, {"vocab_size": 288}), specials=("<s>", "<other>", "<pad>"))
    found = polybit_cli("inspect", model_folder, "--plan", "--draft", other)
    assert found.code == 2
    assert "cannot be the draft of" in found.err


def test_a_card_that_is_too_small_is_an_error_for_a_plan_and_a_remark_otherwise(
    polybit_cli: Polybit, model_folder: Path
) -> None:
    small = ("inspect", model_folder, "--gpu-split", "0.6")
    failed = polybit_cli(*small, "--plan")
    assert failed.code == 2
    assert "can be used; what helps:" in failed.err
    shown = polybit_cli(*small)
    assert shown.code == 0
    assert "can be used; what helps:" in shown.out
    assert "problem" in json.loads(polybit_cli(*small, "--json").out)["memory"]
