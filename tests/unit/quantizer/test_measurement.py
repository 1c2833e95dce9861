import json
from pathlib import Path
from typing import Any

import pytest

from polybit import arch, spec
from polybit.errors import JobError
from polybit.quantizer.measure import MeasuredOption
from polybit.quantizer.measurement import read_measurement, write_measurement
from polybit.quantizer.slots import slots_of
from random_model import TINY_LLAMA

MOE = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}
PARALLEL = {"architectures": ["CohereForCausalLM"], "model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 1.0}
PLAIN = {
    "architectures": ["Starcoder2ForCausalLM"],
    "model_type": "starcoder2",
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "hidden_act": "gelu_pytorch_tanh",
}


def model(**config: Any) -> spec.Model:
    unread = {"rms_norm_eps"} if "norm_epsilon" in config else set()
    return arch.read_model({k: v for k, v in (TINY_LLAMA | config).items() if k not in unread}, where="test")


def measured(of: spec.Model) -> list[list[MeasuredOption]]:
    slots = [slot for block in of.blocks for slot in slots_of(block)]
    return [
        [MeasuredOption(1 - 0.5 ** (i + 1), slot.num_bits(option), option) for i, option in enumerate(slot.options)]
        for slot in slots
    ]


@pytest.mark.parametrize("config", [{}, MOE, PARALLEL, PLAIN], ids=["gated", "experts", "parallel", "plain"])
def test_round_trip(config: dict[str, Any], tmp_path: Path) -> None:
    write_measurement(tmp_path / "m.json", model(**config), measured(model(**config)))
    assert read_measurement(tmp_path / "m.json", model(**config)) == measured(model(**config))


def entries(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    write_measurement(tmp_path / "m.json", model(**config), measured(model(**config)))
    found: dict[str, Any] = json.loads((tmp_path / "m.json").read_text())
    return found


def test_the_file_has_the_shape_that_others_read(tmp_path: Path) -> None:
    found = entries({}, tmp_path)
    assert list(found) == ["measurement", "last_module_idx"]
    assert list(found["measurement"]) == [
        "model.layers.0.self_attn",
        "model.layers.0.mlp",
        "model.layers.1.self_attn",
        "model.layers.1.mlp",
        "model.norm.norm",
        "lm_head.linear",
    ]
    assert found["last_module_idx"] == 6  # embedding, four parts, norm, head
    assert found["measurement"]["lm_head.linear"] is None
    option = found["measurement"]["model.layers.0.mlp"][2]
    assert list(option) == ["accuracy", "total_bits", "gate_proj", "up_proj", "down_proj"]
    assert option["down_proj"] == {
        "group_size": {"5": 32, "3": 32},
        "bits": [5, 3],
        "bits_prop": [0.05, 0.95],
        "scale_bits": 4,
    }


def test_names_of_the_other_kinds(tmp_path: Path) -> None:
    moe = entries(MOE, tmp_path)["measurement"]["model.layers.0.block_sparse_moe"][0]
    assert list(moe) == ["accuracy", "total_bits", "w1", "w3", "w2"]
    parallel = entries(PARALLEL, tmp_path)["measurement"]["model.layers.0.parallel_decoder"]
    assert [len(parallel["attn"]), len(parallel["mlp"])] == [19, 17]
    assert "gate_proj" not in entries(PLAIN, tmp_path)["measurement"]["model.layers.0.mlp"][0]


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        ("{", "is not a measurement file"),
        ('{"measurement": []}', "very old version"),
        ('{"measurement": {}}', r"no options for model\.layers\.0\.self_attn"),
        ('{"measurement": {"model.layers.0.self_attn": [{}]}}', "self_attn option 0 lacks an accuracy, total_bits"),
    ],
)
def test_foreign_files_are_refused_in_one_line(data: str, finding: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(data)
    with pytest.raises(JobError, match=rf"^[^\n]*{finding}[^\n]*$"):
        read_measurement(tmp_path / "m.json", model())


# ---- files of other programs and other models


def matrix(bits: int, group_size: Any) -> dict[str, Any]:
    return {"group_size": group_size, "bits": [bits], "bits_prop": [1], "scale_bits": 4}


def matrix_bits(k: int, n: int, bits: int, group_rows: int) -> int:
    """Format 9.6 for a matrix of one width."""
    groups = k // group_rows
    return k * n * bits + 16 * groups + 32 * groups + 4 * groups * n + 32 * k


def foreign_entries() -> dict[str, Any]:
    """One layer of TINY_LLAMA as another program writes it: in its order, with every spelling of a group size."""
    attention = {
        "accuracy": 0.97,
        "total_bits": 2 * matrix_bits(64, 64, 4, 32) + 2 * matrix_bits(64, 32, 4, 32),
        **{f"{role}_proj": matrix(4, 32) for role in "qk"},
        **{f"{role}_proj": matrix(4, {"4": 32}) for role in "vo"},
    }
    mlp = {
        "accuracy": 0.9375,
        "total_bits": 2 * matrix_bits(64, 96, 3, 64) + matrix_bits(96, 64, 6, 32),
        "gate_proj": matrix(3, [64]),
        "up_proj": matrix(3, {"3": 64}),
        "down_proj": matrix(6, 32),
    }
    return {
        "model.layers.0.self_attn": [attention],
        "model.layers.0.mlp": [mlp],
        "model.norm.norm": None,
        "lm_head.linear": None,
    }


def written(entries: dict[str, Any], folder: Path) -> Path:
    path = folder / "measurement.json"
    path.write_text(json.dumps({"measurement": entries, "last_module_idx": len(entries)}, indent=4))
    return path


def test_a_file_of_another_program_is_read(tmp_path: Path) -> None:
    path = written(foreign_entries(), tmp_path)
    for given in (path, tmp_path):  # the folder will do
        (attention,), (mlp,) = read_measurement(given, model(num_hidden_layers=1))
        assert (attention.accuracy, mlp.accuracy) == (0.97, 0.9375)
        assert attention.num_bits == foreign_entries()["model.layers.0.self_attn"][0]["total_bits"]
        assert mlp.num_bits == foreign_entries()["model.layers.0.mlp"][0]["total_bits"]
        assert {role: (chosen.bits, chosen.group_sizes) for role, chosen in mlp.sets.items()} == {
            "gate": ((3,), (64,)),
            "up": ((3,), (64,)),
            "down": ((6,), (32,)),
        }


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        ({"num_hidden_layers": 2}, r"has no options for model\.layers\.1\.self_attn"),
        ({"intermediate_size": 128}, r"layers\.0\.mlp option 0 takes \d+ bits, but \d+ in this model's shapes"),
        ({"num_key_value_heads": 4}, r"layers\.0\.self_attn option 0 takes \d+ bits, but \d+"),
        (MOE, r"has no options for model\.layers\.0\.block_sparse_moe"),
    ],
)
def test_a_measurement_of_another_model_is_refused_by_names_and_shapes(
    config: dict[str, Any], finding: str, tmp_path: Path
) -> None:
    path = written(foreign_entries(), tmp_path)
    with pytest.raises(JobError, match=f"{finding}.*; it was measured on another model, measure this one$"):
        read_measurement(path, model(**({"num_hidden_layers": 1} | config)))


def test_a_measurement_of_more_layers_is_refused(tmp_path: Path) -> None:
    write_measurement(tmp_path / "m.json", model(), measured(model()))
    with pytest.raises(JobError, match=r"has options for model\.layers\.1\.mlp, which this model lacks"):
        read_measurement(tmp_path / "m.json", model(num_hidden_layers=1))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"missing\.json cannot be read"):
        read_measurement(tmp_path / "missing.json", model())
