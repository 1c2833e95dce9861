"""Configs beside the plain ones of `tiny`: rope scalings, windows, biases, and the switches of single families."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    architecture: str
    overrides: dict[str, Any] = field(default_factory=dict)
    max_seq_len: int | None = None  # of the load; what config.json says where None


def _rope(kind: str, max_seq_len: int | None = None, architecture: str = "LlamaForCausalLM", **values: Any) -> Variant:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **values}
    return Variant(architecture, {"rope_parameters": parameters}, max_seq_len)


def _longrope(trained: int, max_seq_len: int) -> Variant:
    """Phi-3's: half of the heads' 16 features rotated, so 4 frequencies."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 1.5, 2.0, 4.0],
        "partial_rotary_factor": 0.5,
    }
    return Variant(
        "Phi3ForCausalLM",
        {"rope_parameters": rope, "original_max_position_embeddings": trained},
        max_seq_len,
    )


def _local_global(kind: str, **values: Any) -> dict[str, Any]:
    """Gemma 3's way: one rope for each type of layer."""
    full = {"rope_type": kind, "rope_theta": 20000.0, **values}
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS: dict[str, Variant] = {
    "llama-linear": _rope("linear", factor=2.0),
    "llama-dynamic-short": _rope("dynamic", factor=2.0),
    "llama-llama3": _rope("llama3", **LLAMA3),
    "llama-yarn": _rope("yarn", **YARN),
    "llama-yarn-exact-ramp": _rope("yarn", **YARN, truncate=False, beta_fast=8.0, beta_slow=0.5),
    "llama-yarn-mscale": _rope("yarn", **YARN, mscale=1.0, mscale_all_dim=0.5),
    "llama-yarn-attention-factor": _rope("yarn", **YARN, attention_factor=1.5),
    "qwen2-yarn": _rope("yarn", architecture="Qwen2ForCausalLM", **YARN),
    "phi3-longrope-short": _longrope(trained=256, max_seq_len=256),
    "phi3-longrope-long": _longrope(trained=16, max_seq_len=256),
    "phi3-partial": Variant(
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
    ),
    "phi3-window": Variant("Phi3ForCausalLM", {"sliding_window": 8}),
    "llama-biases": Variant("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": Variant("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-wide-heads": Variant("LlamaForCausalLM", {"head_dim": 48, "num_key_value_heads": 1}),
    "llama-odd-vocabulary": Variant("LlamaForCausalLM", {"vocab_size": 288, "intermediate_size": 160}),
    "mistral-no-window": Variant("MistralForCausalLM", {"sliding_window": None}),
    "mixtral-window": Variant("MixtralForCausalLM", {"sliding_window": 8, "head_dim": 32}),
    "yi-theta": Variant("YiForCausalLM", {"rope_theta": 5e6}),
    "internlm2-bias": Variant("InternLM2ForCausalLM", {"attention_bias": True}),
    "internlm2-dynamic": _rope("dynamic", architecture="InternLM2ForCausalLM", factor=2.0),
    "minicpm-tied": Variant("MiniCPMForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-window": Variant(
        "Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    ),
    "qwen3-window-and-biases": Variant(
        "Qwen3ForCausalLM",
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    ),
    "qwen3-moe-some-dense": Variant(
        "Qwen3MoeForCausalLM",
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": True},
    ),
    "qwen3-moe-window": Variant("Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 8}),
    "gemma2-no-caps": Variant(
        "Gemma2ForCausalLM", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "num_hidden_layers": 3}
    ),
    "gemma3-scaled-global": Variant(
        "Gemma3ForCausalLM", {"rope_parameters": _local_global("linear", factor=8.0), "final_logit_softcapping": 20.0}
    ),
    "starcoder2-window": Variant("Starcoder2ForCausalLM", {"sliding_window": 8, "use_bias": False}),
    "cohere-head-norms": Variant("CohereForCausalLM", {"use_qk_norm": True, "attention_bias": True}),
    "dbrx-plain-routing": Variant(
        "DbrxForCausalLM",
        {
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 3, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_hidden_size": 64,
                "moe_num_experts": 3,
                "moe_top_k": 1,
                "moe_normalize_expert_weights": None,
            },
        },
    ),
    "bigcode-many-kv-heads": Variant("GPTBigCodeForCausalLM", {"multi_query": False}),
    "gpt2-inner": Variant("GPT2LMHeadModel", {"n_inner": 96, "activation_function": "relu"}),
    "granite-biases": Variant("GraniteForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "glm4-no-bias": Variant("Glm4ForCausalLM", {"attention_bias": False}),
    "olmo3-yarn-global": Variant("Olmo3ForCausalLM", {"rope_parameters": _local_global("yarn", **YARN)}),
    "smollm3-window": Variant(
        "SmolLM3ForCausalLM", {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [1, 0, 1, 0]}
    ),
    "seed-oss-o-bias": Variant("SeedOssForCausalLM", {"attention_bias": False, "attention_out_bias": True}),
    "exaone4-no-window": Variant("Exaone4ForCausalLM", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
}
