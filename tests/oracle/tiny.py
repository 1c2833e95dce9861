"""Tiny random models on disk, one for each architecture, each with a transformers model that says what is right.

`save_tiny` writes an ordinary model folder (config.json, model.safetensors, tokenizer). Sizes are multiples of 32, so
that the same models can be quantized. Norms and biases are random too: left at 1 and 0 they would hide mistakes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedModel

transformers.utils.logging.disable_progress_bar()

Config = dict[str, Any]
Tensors = dict[str, Tensor]

VOCABULARY = 288
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """How to make one architecture: a transformers model, and what to change on disk where that is a stand-in."""

    config_class: str
    config: Config
    model_class: str | None = None  # the architecture's own name where None
    prepare: Callable[[PreTrainedModel], None] = lambda model: None
    disguise: Callable[[Config, Tensors], tuple[Config, Tensors]] | None = None
    norm_centre: float = 1.0  # 0 where the model adds 1 to its norm weights
    children: tuple[str, ...] = field(default=())  # config entries that take overrides of the text model


def save_tiny(architecture: str, folder: Path, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Write a tiny random model of `architecture` into `folder`; returns the model whose logits it must give.

    overrides: config.json entries of the text model, in transformers' own spelling.
    """
    recipe = RECIPES[architecture]
    torch.manual_seed(seed)
    model = _build(architecture, recipe, overrides)
    recipe.prepare(model)
    _randomise(model, recipe.norm_centre)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if recipe.disguise:
        _rewrite(architecture, recipe.disguise, folder)
        if architecture == "IndexForCausalLM":
            head = model.get_output_embeddings().weight
            head.data = nn.functional.normalize(head.data)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: one token a byte, then the special tokens, then unused rows up to VOCABULARY."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, eos, pad = SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _build(architecture: str, recipe: Recipe, overrides: Config) -> PreTrainedModel:
    settings: Config = json.loads(json.dumps(recipe.config))
    target = settings
    for name in recipe.children:
        target = target[name]
    target |= overrides
    config = getattr(transformers, recipe.config_class)(**settings)
    config._attn_implementation = "eager"
    model: PreTrainedModel = getattr(transformers, recipe.model_class or architecture)(config)
    return model.eval()


@torch.no_grad()
def _randomise(model: PreTrainedModel, norm_centre: float) -> None:
    """Matrices so large that attention is far from uniform; norm weights around their centre; biases off zero."""
    norms = {id(p) for m in model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(recurse=False)}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
        elif id(parameter) in norms:
            parameter.normal_(norm_centre, 0.3)
        elif id(parameter) in embeddings:
            parameter.normal_(0, 1)
        else:
            parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)


def _rewrite(architecture: str, disguise: Callable[[Config, Tensors], tuple[Config, Tensors]], folder: Path) -> None:
    config_file, weight_file = folder / "config.json", folder / "model.safetensors"
    config, tensors = disguise(json.loads(config_file.read_text(encoding="utf-8")), load_file(weight_file))
    config["architectures"] = [architecture]
    config_file.write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, weight_file)


def _renamed(tensors: Tensors, *changes: tuple[str, str]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in changes:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


# ---- architectures that transformers does not ship: an equal model that it does ship, saved under their names


def _as_yi(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    config["model_type"] = "Yi"
    return config, _renamed(tensors, ("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))


def _as_index(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    return config | {"model_type": "index", "norm_head": True}, tensors


def _layer_norms(model: PreTrainedModel) -> None:
    """Orion is Llama with LayerNorm."""
    eps, width = model.config.rms_norm_eps, model.config.hidden_size
    model.model.norm = nn.LayerNorm(width, eps=eps)
    for layer in model.model.layers:
        layer.input_layernorm = nn.LayerNorm(width, eps=eps)
        layer.post_attention_layernorm = nn.LayerNorm(width, eps=eps)


def _as_orion(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    return config | {"model_type": "orion"}, tensors


def _as_minicpm(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """MiniCPM is Granite with its multipliers written another way, and the attention scale that everyone has."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    own = {
        "model_type": "minicpm",
        "scale_emb": config.pop("embedding_multiplier"),
        "scale_depth": config.pop("residual_multiplier") * layers**0.5,
        "dim_model_base": int(hidden / config.pop("logits_scaling")),
    }
    for unused in ("attention_multiplier", "attention_bias", "mlp_bias"):
        del config[unused]
    return config | own, tensors


def _as_internlm2(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """InternLM2 is Llama with q, k and v packed by kv head."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // heads
    packed = {}
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"model.layers.{layer}.self_attn.{p}_proj.{kind}", None) for p in "qkv"]
            if parts[0] is not None:
                rows = [part.reshape(kv_heads, -1, head_dim, *part.shape[1:]) for part in parts]
                joined = torch.cat(rows, dim=1).flatten(0, 2).contiguous()
                packed[f"model.layers.{layer}.attention.wqkv.{kind}"] = joined
    bias = config.pop("attention_bias")
    for unused in ("head_dim", "mlp_bias"):
        del config[unused]
    names = _renamed(
        tensors | packed,
        ("model.embed_tokens", "model.tok_embeddings"),
        ("lm_head", "output"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    )
    return config | {"model_type": "internlm2", "bias": bias}, names


# ---- the table

TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
SIZES = {
    **TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
HEADS_OF_32 = {"head_dim": 32}
GEMMA = {**SIZES, **HEADS_OF_32, "query_pre_attn_scalar": 24}
LOCAL_GLOBAL = {"sliding_window": 8, "num_hidden_layers": 4}
ROTATED_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "num_channels": 3,
}
QWEN_VISION = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "temporal_patch_size": 2,
}
QWEN_TEXT = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
GRANITE = {
    **SIZES,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}

RECIPES: dict[str, Recipe] = {
    "LlamaForCausalLM": Recipe("LlamaConfig", SIZES),
    "MistralForCausalLM": Recipe("MistralConfig", SIZES | HEADS_OF_32 | {"sliding_window": 8}),
    "MinistralForCausalLM": Recipe(
        "MinistralConfig",
        SIZES | LOCAL_GLOBAL | {"layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16},
    ),
    "MixtralForCausalLM": Recipe("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "YiForCausalLM": Recipe("LlamaConfig", SIZES, "LlamaForCausalLM", disguise=_as_yi),
    "OrionForCausalLM": Recipe("LlamaConfig", SIZES, "LlamaForCausalLM", prepare=_layer_norms, disguise=_as_orion),
    "IndexForCausalLM": Recipe("LlamaConfig", SIZES, "LlamaForCausalLM", disguise=_as_index),
    "InternLM2ForCausalLM": Recipe("LlamaConfig", SIZES, "LlamaForCausalLM", disguise=_as_internlm2),
    "MiniCPMForCausalLM": Recipe(
        "GraniteConfig", GRANITE | {"attention_multiplier": 0.25}, "GraniteForCausalLM", disguise=_as_minicpm
    ),
    "Qwen2ForCausalLM": Recipe("Qwen2Config", SIZES),
    "Qwen3ForCausalLM": Recipe("Qwen3Config", SIZES | HEADS_OF_32),
    "Qwen3MoeForCausalLM": Recipe(
        "Qwen3MoeConfig",
        SIZES | HEADS_OF_32 | {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "GemmaForCausalLM": Recipe("GemmaConfig", SIZES | HEADS_OF_32, norm_centre=0.0),
    "Gemma2ForCausalLM": Recipe("Gemma2Config", GEMMA | {"sliding_window": 8}, norm_centre=0.0),
    "Gemma3ForCausalLM": Recipe("Gemma3TextConfig", GEMMA | LOCAL_GLOBAL | {"num_hidden_layers": 7}, norm_centre=0.0),
    "Gemma3ForConditionalGeneration": Recipe(
        "Gemma3Config",
        {
            "text_config": GEMMA | LOCAL_GLOBAL | {"num_hidden_layers": 7},
            "vision_config": ROTATED_VISION,
            "image_token_index": 259,
            "boi_token_index": 260,
            "eoi_token_index": 261,
        },
        norm_centre=0.0,
        children=("text_config",),
    ),
    "Starcoder2ForCausalLM": Recipe("Starcoder2Config", SIZES),
    "CohereForCausalLM": Recipe("CohereConfig", SIZES | {"logit_scale": 0.25}),
    "Cohere2ForCausalLM": Recipe("Cohere2Config", SIZES | HEADS_OF_32 | LOCAL_GLOBAL | {"logit_scale": 0.25}),
    "DbrxForCausalLM": Recipe(
        "DbrxConfig",
        TOKENS
        | {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "Phi3ForCausalLM": Recipe("Phi3Config", SIZES | {"original_max_position_embeddings": 512}),
    "PhiForCausalLM": Recipe("PhiConfig", SIZES),
    "GPTBigCodeForCausalLM": Recipe(
        "GPTBigCodeConfig", TOKENS | {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 256, "n_inner": 96}
    ),
    "GPT2LMHeadModel": Recipe("GPT2Config", TOKENS | {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256}),
    "GraniteForCausalLM": Recipe("GraniteConfig", GRANITE),
    "GlmForCausalLM": Recipe("GlmConfig", SIZES | HEADS_OF_32),
    "Glm4ForCausalLM": Recipe("Glm4Config", SIZES | HEADS_OF_32),
    "Olmo2ForCausalLM": Recipe("Olmo2Config", SIZES),
    "Olmo3ForCausalLM": Recipe("Olmo3Config", SIZES | LOCAL_GLOBAL),
    "SmolLM3ForCausalLM": Recipe("SmolLM3Config", SIZES | {"num_hidden_layers": 4}),
    "SeedOssForCausalLM": Recipe("SeedOssConfig", SIZES | HEADS_OF_32),
    "Exaone4ForCausalLM": Recipe("Exaone4Config", SIZES | LOCAL_GLOBAL),
    "Mistral3ForConditionalGeneration": Recipe(
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **SIZES, **HEADS_OF_32},
            "vision_config": {"model_type": "pixtral", **ROTATED_VISION},
            "tie_word_embeddings": False,
        },
        children=("text_config",),
    ),
    "LlavaForConditionalGeneration": Recipe(
        "LlavaConfig",
        {
            "text_config": {"model_type": "mistral", **SIZES, **HEADS_OF_32},
            "vision_config": {"model_type": "pixtral", **ROTATED_VISION},
        },
        children=("text_config",),
    ),
    "Qwen2VLForConditionalGeneration": Recipe(
        "Qwen2VLConfig",
        {"text_config": QWEN_TEXT, "vision_config": QWEN_VISION | {"embed_dim": 32, "hidden_size": 64}},
        children=("text_config",),
    ),
    "Qwen2_5_VLForConditionalGeneration": Recipe(
        "Qwen2_5_VLConfig",
        {
            "text_config": QWEN_TEXT,
            "vision_config": QWEN_VISION | {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64},
        },
        children=("text_config",),
    ),
}
