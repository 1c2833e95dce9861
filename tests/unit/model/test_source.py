"""Opening a folder: what is refused, and with which words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polybit import spec
from polybit.errors import ConfigError, FormatError
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows
from random_model import TINY_LLAMA, write_random_model

CPU = LoadOptions(device="cpu")


def test_opens(tmp_path: Path) -> None:
    source = open_model(write_random_model(tmp_path))
    assert source.spec.architecture == "LlamaForCausalLM"
    assert len(source.spec.blocks) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no config.json"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_bad_config_files(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=words):
        open_model(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        open_model(tmp_path / "nothing")


def test_a_missing_tensor_is_named_before_loading(tmp_path: Path) -> None:
    write_random_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight not found"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.layers.0.input_layernorm.weight", lambda x: x[:1], r"has shape \[1\], expected \[64\]"),
        ("model.norm.weight", lambda x: x[None], r"has shape \[1, 64\], expected \[64\]"),
        ("model.norm.weight", lambda x: x.int(), "is int32, expected float16"),
        ("model.embed_tokens.weight", lambda x: x[:90], r"has shape \[90, 64\], expected \[96, 64\]"),
        ("model.embed_tokens.weight", lambda x: x.to(torch.float8_e4m3fn), "is float8_e4m3fn, expected float16"),
    ],
)
def test_a_vector_of_another_shape_or_type_is_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    rewrite(tmp_path, name, change)
    with pytest.raises(FormatError, match=f"^{re.escape(name)} {words}.*model.safetensors"):
        open_model(tmp_path)


def rewrite(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], config: dict[str, Any] | None = None
) -> None:
    tensors = load_file(write_random_model(folder, config) / "model.safetensors")
    save_file({**tensors, name: change(tensors[name]).contiguous()}, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
def test_a_head_norm_may_be_repeated_for_every_head_but_not_otherwise(tmp_path: Path, name: str) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}
    heads, key = {"q_norm": 4, "k_norm": 2}[name], f"model.layers.1.self_attn.{name}.weight"
    write_random_model(tmp_path / "plain", config)
    rewrite(tmp_path / "repeated", key, lambda x: x.repeat(heads, 1), config)
    exact = LoadOptions(device="cpu", backend="reference")  # has one RMSNorm for weights of either shape
    plain, repeated = (load(open_model(tmp_path / kind, exact)) for kind in ("plain", "repeated"))
    tokens = torch.arange(9)
    logits = [model.forward(tokens, *whole_rows(1, 9, model.device)) for model in (plain, repeated)]
    assert torch.equal(*logits)
    rewrite(tmp_path / "odd", key, lambda x: x.repeat(3, 1), config)
    with pytest.raises(FormatError, match=rf"has shape \[3, 16\], expected \[{heads}, 16\]"):
        open_model(tmp_path / "odd")


def test_max_seq_len_is_bounded_by_learned_positions(tmp_path: Path) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 64,
        "n_head": 2,
        "n_layer": 1,
        "n_positions": 32,
        "vocab_size": 96,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="32 learned positions"):
        open_model(tmp_path, LoadOptions(max_seq_len=33))


@pytest.mark.parametrize("options", [LoadOptions(max_seq_len=0), LoadOptions(max_seq_len=-5)])
def test_max_seq_len_out_of_range(tmp_path: Path, options: LoadOptions) -> None:
    write_random_model(tmp_path)
    with pytest.raises(ConfigError, match="expected at least 1"):
        open_model(tmp_path, options)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (LoadOptions(max_seq_len=513), True),
        (LoadOptions(max_seq_len=512), False),
        (LoadOptions(max_seq_len=1024, rope_alpha=2.0), False),
    ],
)
def test_a_context_longer_than_the_models_is_said(
    tmp_path: Path, options: LoadOptions, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_model(write_random_model(tmp_path), options).spec.max_seq_len == options.max_seq_len
    assert ("is more than the 512 that LlamaForCausalLM is made for" in caplog.text) == warned


def test_an_unread_key_refuses_the_model(tmp_path: Path) -> None:
    write_random_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**TINY_LLAMA, "attention_twist": 3}))
    with pytest.raises(ConfigError, match="attention_twist"):
        open_model(tmp_path)


def test_yarn_stretches_the_trained_length_and_not_the_one_asked_for(tmp_path: Path) -> None:
    source = open_model(write_random_model(tmp_path), LoadOptions(rope_yarn=4.0, max_seq_len=2048))
    rope = source.spec.blocks[0].attn.rope
    assert rope is not None
    assert isinstance(rope.scaling, spec.YarnScaling)
    assert (rope.scaling.original_length, source.spec.max_seq_len) == (512, 2048)
