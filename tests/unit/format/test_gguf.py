import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from polybit import arch
from polybit.errors import FormatError, PolybitError, UnsupportedModel
from polybit.format import gguf
from polybit.format.checkpoint import Checkpoint
from polybit.format.gguf import export
from unit.format.gguf_cases import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Case, make

FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def exported(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    export(case.write(folder / "model.gguf"), folder / "out", dtype)
    return Checkpoint.open(folder / "out")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_one_that_models_are_read_from(tmp_path: Path, family: str) -> None:
    checkpoint = exported(make(family), tmp_path)
    config = read_json(tmp_path / "out" / "config.json")
    model = arch.read_model(config, where="config.json")
    assert len(model.blocks) == LAYERS
    for linear in model.linears:
        key = linear.source.key if linear.source else linear.key
        assert checkpoint.shape(f"{key}.weight")[1] == linear.in_features
        assert (f"{key}.bias" in checkpoint) is linear.bias
    assert ("lm_head.weight" in checkpoint) is not config["tie_word_embeddings"]
    assert config["torch_dtype"] == "float32"


def test_the_numbers_of_the_config(tmp_path: Path) -> None:
    exported(make("llama"), tmp_path)
    config = read_json(tmp_path / "out" / "config.json")
    assert config["rms_norm_eps"] == 1e-5  # not the nearest float32, 9.999999747378752e-06
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_key_value_heads"], config["head_dim"]) == (KV_HEADS, HEAD_DIM)
    assert (config["eos_token_id"], config["pad_token_id"]) == (261, None)


def test_rotated_pairs_come_apart_into_halves(tmp_path: Path) -> None:
    """The file rotates neighbours (2i, 2i + 1), the folder's model (i, i + D/2): both give the same products."""
    case = make("llama")
    weight = exported(case, tmp_path).tensor(Q_PROJ).view(HEADS, HEAD_DIM, HIDDEN)
    stored = torch.from_numpy(case.tensors["blk.0.attn_q.weight"]).view(HEADS, HEAD_DIM, HIDDEN)
    assert torch.equal(weight[:, : HEAD_DIM // 2], stored[:, 0::2])
    assert torch.equal(weight[:, HEAD_DIM // 2 :], stored[:, 1::2])


def test_values_and_outputs_keep_their_rows(tmp_path: Path) -> None:
    case = make("llama")
    checkpoint = exported(case, tmp_path)
    for stored, name in (
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_up", "mlp.up_proj"),
    ):
        expected = torch.from_numpy(case.tensors[f"blk.1.{stored}.weight"])
        assert torch.equal(checkpoint.tensor(f"model.layers.1.{name}.weight"), expected)


def test_gemma_norms_lose_the_one_that_files_add(tmp_path: Path) -> None:
    case = make("gemma3")
    checkpoint = exported(case, tmp_path)
    for stored, name in (("output_norm", "model.norm"), ("blk.0.attn_q_norm", "model.layers.0.self_attn.q_norm")):
        expected = torch.from_numpy(case.tensors[f"{stored}.weight"]) - 1
        assert torch.equal(checkpoint.tensor(f"{name}.weight"), expected)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16])
def test_quantized_tensors_are_dequantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: GGMLQuantizationType
) -> None:
    monkeypatch.setattr(gguf, "SLICE_ELEMENTS", 5 * HIDDEN)  # some rows at a time, the last slice shorter
    case = make("qwen2")
    name = "blk.0.attn_q.weight"
    case.types = {name: kind}
    expected = dequantize(quantize(case.tensors[name], kind), kind)
    tensor = exported(case, tmp_path, torch.bfloat16).tensor(Q_PROJ)
    assert torch.equal(tensor, torch.from_numpy(expected).bfloat16())


def test_large_files_become_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "SHARD_BYTES", 100_000)
    checkpoint = exported(make("llama"), tmp_path)
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    assert index["weight_map"].keys() == checkpoint.names()
    assert all(checkpoint.file_of(name).name == file for name, file in index["weight_map"].items())
    assert len(set(index["weight_map"].values())) > 1


def test_every_token_that_ends_a_turn_ends_generation(tmp_path: Path) -> None:
    case = make("qwen2")
    case.tokenizer["ggml.eot_token_id"] = 5
    exported(case, tmp_path)
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [261, 5]


def test_progress_counts_tensors(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    case = make("qwen2")
    export(case.write(tmp_path / "m.gguf"), tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    total = len(case.tensors)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_llama3_rope_comes_from_its_table(tmp_path: Path) -> None:
    """Divisors of Llama 3.2: wavelengths above 8192 by 32, below 2048 by 1, a ramp between."""
    case = make("llama")
    case.settings |= {"rope.freq_base": 500000.0}
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    kept = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    case.tensors["rope_freqs.weight"] = (1 / ((1 - kept) / 32 + kept)).astype(np.float32)
    exported(case, tmp_path)
    scaling = read_json(tmp_path / "out" / "config.json")["rope_scaling"]
    assert scaling["rope_type"] == "llama3"
    assert (scaling["factor"], scaling["original_max_position_embeddings"]) == (32.0, 8192)


def test_yarn_and_longrope(tmp_path: Path) -> None:
    yarn, phi = make("qwen2"), make("phi3")
    yarn.settings |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
    }
    exported(yarn, tmp_path)
    assert read_json(tmp_path / "out" / "config.json")["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    for kind, value in (("long", 3.0), ("short", 1.0)):
        phi.tensors[f"rope_factors_{kind}.weight"] = np.full(HEAD_DIM // 2, value, np.float32)
    export(phi.write(tmp_path / "phi.gguf"), tmp_path / "phi")
    scaling = read_json(tmp_path / "phi" / "config.json")["rope_scaling"]
    assert scaling == {"type": "longrope", "long_factor": [3.0] * 8, "short_factor": [1.0] * 8}


# ---- refusals


def settings(**changes: Any) -> Callable[[Case], None]:
    return lambda case: case.settings.update({name.replace("__", "."): value for name, value in changes.items()})


def tensor(name: str, *shape: int) -> Callable[[Case], None]:
    return lambda case: case.tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda case: setattr(case, "arch", "lama"), "'lama' .* nearest supported one is llama"),
        (lambda case: setattr(case, "arch", "mamba"), r"'mamba' are not read from GGUF.*supported: llama, qwen2"),
        (settings(expert_count=8), r"llama\.expert_count = 8 is not supported"),
        (settings(rope__dimension_count=8), r"llama\.rope\.dimension_count = 8 is not supported, only 16 is"),
        (settings(attention__scale=0.5), r"setting llama\.attention\.scale is not supported for llama models"),
        (settings(rope__scaling__type="ntk"), "rope scaling 'ntk' is not supported"),
        (settings(block_count=3), r"llama\.block_count is 3, expected the 2 that the file has tensors of"),
        (settings(attention__head_count=0), r"attention\.head_count is 0, expected 1 or more"),
        (settings(attention__head_count_kv=[2, 2]), r"head_count_kv is a list of 2, expected a number"),
        (lambda case: case.settings.pop("context_length"), r"llama\.context_length is missing"),
        (lambda case: case.tensors.pop("token_embd.weight"), r"no tensor token_embd\.weight"),
        (tensor("blk.0.ffn_gate_exps.weight", 4, 4), r"tensor 'blk\.0\.ffn_gate_exps\.weight' is not known in llama"),
        (tensor("rope_freqs.weight", 8), r"rope_freqs\.weight is not a table of Llama 3's kind"),
        (tensor("blk.0.attn_q.weight", 30, HIDDEN), r"attn_q\.weight has 30 rows for 4 heads"),
        (lambda case: case.general.update({"alignment": 7}), r"general\.alignment is 7, expected a power of two"),
        (lambda case: case.tokenizer.pop("ggml.tokens"), r"tokenizer\.ggml\.tokens is missing"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, damage: Callable[[Case], None], finding: str) -> None:
    case = make("llama")
    damage(case)
    with pytest.raises(PolybitError, match=finding) as error:
        exported(case, tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_parts_of_a_split_file_are_refused(tmp_path: Path) -> None:
    path = make("llama").write(tmp_path / "m.gguf")
    data = path.read_bytes()
    key = b"split.count"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, 3)  # an unsigned 16-bit 3
    num_keys = struct.unpack_from("<Q", data, 16)[0]
    path.write_bytes(data[:16] + struct.pack("<Q", num_keys + 1) + entry + data[24:])
    with pytest.raises(UnsupportedModel, match="one part of several; join them"):
        export(path, tmp_path / "out")


def test_types_that_cannot_be_dequantized_are_named(tmp_path: Path) -> None:
    case = make("llama")
    case.tensors["output.weight"] = np.zeros((263, HIDDEN), np.float64)
    with pytest.raises(UnsupportedModel, match=r"tensor output\.weight is of type F64, which cannot be dequantized"):
        exported(case, tmp_path)


def test_values_beyond_the_type_are_named(tmp_path: Path) -> None:
    case = make("llama")
    case.tensors["output_norm.weight"][3] = 1e6
    with pytest.raises(FormatError, match=r"output_norm\.weight holds values that are not finite in torch\.float16"):
        exported(case, tmp_path, torch.float16)
    assert not list((tmp_path / "out").glob("*"))


def test_a_truncated_file_names_the_tensor(tmp_path: Path) -> None:
    path = make("llama").write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FormatError, match=r"tensor .* ends at byte \d+, but the file has \d+"):
        export(path, tmp_path / "out")


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    path = make("llama").write(tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"is not empty \(it holds notes\.txt\)"):
        export(path, tmp_path / "out")
    assert [kept.name for kept in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_without_the_library_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("llama").write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(FormatError, match=r"pip install 'polybit\[gguf\]'"):
        export(path, tmp_path / "out")
