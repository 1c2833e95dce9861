"""Configs as models were published with, in the spelling of before `rope_parameters`, give the specs they should."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polybit import spec
from polybit.arch import SUPPORTED, UNSUPPORTED, read_model
from polybit.errors import ConfigError, UnsupportedModel
from unit.arch.published import GEMMA3, LLAMA, PUBLISHED, QWEN2


def read(config: dict[str, Any], **changes: Any) -> spec.Model:
    return read_model({**config, **changes}, "config.json")


def test_there_is_one_for_each_architecture() -> None:
    assert set(PUBLISHED) == set(SUPPORTED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_reads_and_is_left_alone(name: str) -> None:
    config = copy.deepcopy(PUBLISHED[name])
    model = read(config)
    assert model.architecture == name
    assert config == PUBLISHED[name]
    keys = [linear.key for linear in model.linears]
    assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_key_that_nothing_reads_refuses_the_model(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json: residual_gain is 2, a key that nothing reads"):
        read(PUBLISHED[name], residual_gain=2)


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "Mistral3ForConditionalGeneration"])
def test_so_does_one_inside_the_text_config(name: str) -> None:
    text = {**PUBLISHED[name]["text_config"], "residual_gain": 2}
    with pytest.raises(UnsupportedModel, match=r"text_config\.residual_gain is 2"):
        read(PUBLISHED[name], text_config=text)


def test_a_text_config_may_be_repeated_around_it_but_not_contradicted() -> None:
    flat = PUBLISHED["Qwen2_5_VLForConditionalGeneration"]
    text = {key: value for key, value in flat.items() if "token" not in key and "vision" not in key}
    assert read(flat, text_config=text) == read(flat)
    with pytest.raises(UnsupportedModel, match="hidden_size is 64, a key that nothing reads"):
        read(flat, text_config=text, hidden_size=64)


def test_llama3() -> None:
    model = read(LLAMA)
    attn = model.blocks[5].attn
    assert (model.hidden_size, len(model.blocks), model.max_seq_len) == (4096, 32, 131072)
    assert (attn.num_heads, attn.num_kv_heads, attn.head_dim, attn.scale) == (32, 8, 128, 128**-0.5)
    assert attn.rope == spec.Rope(500000.0, 128, scaling=spec.Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert attn.k.key == "model.layers.5.self_attn.k_proj"
    assert not model.head.tied


def test_gemma3_has_two_ropes_and_five_windows_to_one_full_layer() -> None:
    model = read(GEMMA3)
    assert [block.attn.window for block in model.blocks[:6]] == [512] * 5 + [None]
    assert model.blocks[0].attn.rope == spec.Rope(10000.0, 256)
    assert model.blocks[5].attn.rope == spec.Rope(1000000.0, 256)
    assert model.embedding.scale == 640**0.5
    assert model.head.tied
    assert model.fp32_residual
    assert model.needs_bos


def test_gemma3_with_vision_takes_the_defaults_that_its_config_leaves_out() -> None:
    model = read(PUBLISHED["Gemma3ForConditionalGeneration"])
    attn = model.blocks[5].attn
    assert attn.q.key == "language_model.model.layers.5.self_attn.q_proj"
    assert model.head.linear.key == "language_model.lm_head"
    assert (attn.num_heads, attn.num_kv_heads, attn.head_dim) == (8, 4, 256)
    assert attn.rope == spec.Rope(1e6, 256, scaling=spec.LinearScaling(8.0))
    assert model.blocks[0].attn.rope == spec.Rope(10000.0, 256)
    assert model.embedding.num_rows == 262208


def test_command_r7b_has_no_rope_on_full_layers() -> None:
    blocks = read(PUBLISHED["Cohere2ForCausalLM"]).blocks
    assert [block.attn.window for block in blocks[:4]] == [4096] * 3 + [None]
    assert [block.attn.rope is None for block in blocks[:4]] == [False] * 3 + [True]


def test_command_r_takes_the_longer_of_its_two_lengths() -> None:
    assert read(PUBLISHED["CohereForCausalLM"]).max_seq_len == 131072


def test_qwen2_ignores_a_window_that_it_does_not_use() -> None:
    assert {block.attn.window for block in read(QWEN2).blocks} == {None}
    windows = [block.attn.window for block in read(QWEN2, use_sliding_window=True).blocks]
    assert windows == [None] * 21 + [32768] * 3


def test_minicpm_folds_its_multipliers_into_matrices() -> None:
    model = read(PUBLISHED["MiniCPMForCausalLM"])
    block = model.blocks[0]
    assert isinstance(block.mlp, spec.GatedMlp)
    assert model.embedding.scale == 12
    assert block.attn.o.prescale == block.mlp.down.prescale == pytest.approx(1.4 / 40**0.5)
    assert model.head.linear.prescale == 256 / 2304
    assert block.attn.q.prescale == 1


def test_dbrx_reads_its_experts_out_of_stacked_tensors() -> None:
    model = read(PUBLISHED["DbrxForCausalLM"])
    moe = model.blocks[1].mlp
    assert isinstance(moe, spec.SparseMoe)
    at = "model.layers.1.block_sparse_moe.experts"
    assert moe.experts[2].down.key == f"{at}.2.w2"
    assert moe.experts[2].down.source == spec.Source(f"{at}.w2", 2 * 10752, 3 * 10752, transposed=True)
    assert model.blocks[1].attn.clip_qkv == 8
    assert model.blocks[1].attn.rope == spec.Rope(500000.0, 128)


def test_phi4_mini_rotates_part_of_each_head_by_longrope() -> None:
    rope = read(PUBLISHED["Phi3ForCausalLM"]).blocks[0].attn.rope
    assert rope is not None
    assert rope.dim == 96
    assert isinstance(rope.scaling, spec.LongRopeScaling)
    assert rope.scaling.attention_factor == pytest.approx((1 + 5 / 12) ** 0.5)  # sqrt(1 + ln 32 / ln 4096)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith(("GPT", "Gemma3", "Olmo3"))])
def test_the_spelling_of_transformers_5_means_the_same(name: str) -> None:
    """`rope_theta`, `rope_scaling` and `partial_rotary_factor` inside one `rope_parameters`."""
    config = copy.deepcopy(PUBLISHED[name])
    text = config.get("text_config", config)
    moved = {key: text.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in text}
    text["rope_parameters"] = {"rope_type": "default", **moved, **(text.pop("rope_scaling", None) or {})}
    if "type" in text["rope_parameters"]:
        text["rope_parameters"]["rope_type"] = text["rope_parameters"].pop("type")
    assert read(config) == read(PUBLISHED[name])


@pytest.mark.parametrize("where", [("inside", "beside"), ("beside",), ("inside",)])
def test_the_share_that_is_rotated_may_stand_beside_the_rope_parameters(where: tuple[str, ...]) -> None:
    config = copy.deepcopy(PUBLISHED["Phi3ForCausalLM"])
    share, scaling = config.pop("partial_rotary_factor"), config.pop("rope_scaling")
    scaling["rope_type"] = scaling.pop("type")
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **scaling}
    for holder in (config["rope_parameters"] if place == "inside" else config for place in where):
        holder["partial_rotary_factor"] = share
    assert read(config) == read(PUBLISHED["Phi3ForCausalLM"])


def test_two_shares_that_differ_are_refused() -> None:
    config = copy.deepcopy(PUBLISHED["Phi3ForCausalLM"])
    config["rope_parameters"] = {"rope_type": "default", "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match=r"partial_rotary_factor is 0\.75, expected the same as in rope_parameters"):
        read(config)


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "Olmo3ForCausalLM"])
def test_ropes_by_layer_type_mean_the_same(name: str) -> None:
    config = copy.deepcopy(PUBLISHED[name])
    theta, local = config.pop("rope_theta"), config.pop("rope_local_base_freq", 500000)
    scaling = config.pop("rope_scaling") or {"rope_type": "default"}
    config["rope_parameters"] = {
        "full_attention": {"rope_theta": theta, **scaling},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    assert read(config) == read(PUBLISHED[name])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("LlamaForCausalLM", "self_attn.q_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"),
        ("Phi3ForCausalLM", "self_attn.k_proj self_attn.v_proj mlp.gate_proj mlp.up_proj mlp.down_proj"),
        ("Glm4ForCausalLM", "self_attn.q_proj mlp.gate_proj mlp.up_proj mlp.down_proj"),
        (
            "MixtralForCausalLM",
            "block_sparse_moe.experts.7.w1 block_sparse_moe.experts.0.w2 block_sparse_moe.experts.3.w3",
        ),
        ("DbrxForCausalLM", "self_attn.k_proj block_sparse_moe.experts.15.w1 block_sparse_moe.experts.0.v1"),
        ("Qwen3MoeForCausalLM", "mlp.experts.127.gate_proj mlp.experts.0.up_proj mlp.experts.9.down_proj"),
        ("Starcoder2ForCausalLM", "self_attn.q_proj mlp.c_fc mlp.c_proj"),
        ("GPT2LMHeadModel", "self_attn.q_proj self_attn.v_proj self_attn.o_proj mlp.c_fc mlp.c_proj"),
        ("GPTBigCodeForCausalLM", "self_attn.q_proj self_attn.v_proj self_attn.o_proj mlp.c_fc mlp.c_proj"),
        ("InternLM2ForCausalLM", "self_attn.k_proj self_attn.o_proj feed_forward.w1 feed_forward.w2 feed_forward.w3"),
    ],
)
def test_matrices_have_the_names_that_exl2_files_use(name: str, keys: str) -> None:
    names = {linear.key for linear in read(PUBLISHED[name]).linears}
    assert {f"model.layers.3.{key}" for key in keys.split()} <= names


@pytest.mark.parametrize("name", PUBLISHED)
def test_renames_leave_internal_names_alone(name: str) -> None:
    model = read(PUBLISHED[name])
    keys = {linear.key for linear in (*model.linears, model.head.linear)} | {model.norm.key, model.embedding.key}
    keys |= {norm.key for block in model.blocks for norm in spec.block_norms(block)}
    for old, _ in model.renames:
        assert not [key for key in keys if (f"{key}.".startswith(old[1:]) if old[0] == "^" else old in f"{key}.")]


def test_heads_need_not_cover_the_hidden_size() -> None:
    attn = read(LLAMA, head_dim=64).blocks[0].attn
    assert (attn.q.out_features, attn.k.out_features, attn.o.in_features) == (2048, 512, 2048)
    assert read(LLAMA, head_dim=None) == read(LLAMA)


def test_a_quantized_model_is_the_same_model() -> None:
    assert read(LLAMA, quantization_config={"quant_method": "exl2", "bits": 4.0}) == read(LLAMA)
    with pytest.raises(UnsupportedModel, match="quant_method 'awq'"):
        read(LLAMA, quantization_config={"quant_method": "awq"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -1}, "hidden_size is -1, expected a whole number from 1"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', expected a whole number"),
        ({"hidden_size": None}, "no hidden_size or n_embd or d_model, which LlamaForCausalLM needs"),
        ({"num_attention_heads": 33}, "num_attention_heads is 33, expected a divisor of hidden_size 4096"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5, expected a divisor of num_attention_heads 32"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number"),
        ({"attention_bias": "no"}, "attention_bias is 'no', expected true or false"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2', expected one of silu"),
        ({"rope_theta": 0.5}, "rope_theta is 0.5, expected a number above 1"),
        ({"rope_scaling": {"type": "ntk-by-parts"}}, "rope_scaling.rope_type is 'ntk-by-parts', expected linear"),
        ({"rope_scaling": {"type": "linear"}}, "no rope_scaling.factor, which LlamaForCausalLM needs"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, "one kind of scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}, "rope_scaling.beta is 1, a key that nothing"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
        ({"rope_interleaved": True}, "rope_interleaved is True; polybit implements LlamaForCausalLM only with False"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, expected a whole number from 1 to 512"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(LLAMA, **changes)
    assert str(raised.value).startswith("config.json: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_head_with_a_bias_is_never_tied() -> None:
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings is True; polybit implements PhiForCausalLM"):
        read({**PUBLISHED["PhiForCausalLM"], "tie_word_embeddings": True})


def test_experts_cannot_be_visited_more_often_than_there_are() -> None:
    with pytest.raises(ConfigError, match="num_experts_per_tok is 9, expected at most the 8 experts"):
        read(PUBLISHED["MixtralForCausalLM"], num_experts_per_tok=9)


def test_layer_types_must_cover_all_layers_and_be_known() -> None:
    with pytest.raises(ConfigError, match="an entry for each of 18 layers"):
        read(GEMMA3, layer_types=["full_attention"])
    with pytest.raises(UnsupportedModel, match=r"layer_types\[1\] is 'chunked_attention'"):
        read(GEMMA3, layer_types=["full_attention"] + ["chunked_attention"] * 17)


def test_specs_are_values() -> None:
    model = read(QWEN2)
    assert model == read(json.loads(json.dumps(QWEN2)))
    assert hash(model) == hash(replace(model))


def test_the_documentation_lists_exactly_the_registry() -> None:
    page = (Path(__file__).parents[3] / "docs" / "architectures.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    supported = [f"| `{name}` | {SUPPORTED[name].note} |" for name in sorted(SUPPORTED)]
    refused = [f"| `{name}` | {UNSUPPORTED[name]} |" for name in sorted(UNSUPPORTED)]
    assert rows == supported + refused, "run python docs/write_architectures.py"
