"""Every supported architecture by the name that config.json gives it, and the way from a config to a spec."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from polybit.arch import (
    cohere,
    cohere2,
    dbrx,
    exaone4,
    gemma,
    gemma2,
    gemma3,
    glm,
    gpt2,
    gpt_bigcode,
    granite,
    index,
    internlm2,
    llama,
    minicpm,
    mistral,
    mixtral,
    multimodal,
    olmo,
    orion,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    starcoder2,
    yi,
)
from polybit.arch.config import HFConfig
from polybit.arch.unsupported import UNSUPPORTED
from polybit.errors import ConfigError, UnsupportedModel
from polybit.spec import Model

QUANTIZATIONS = ("exl2", "gptq")


@dataclass(frozen=True)
class Architecture:
    """A way to read a config, and one line for people: known models and what is special."""

    build: Callable[[HFConfig], Model]
    note: str


SUPPORTED: Mapping[str, Architecture] = {
    "CohereForCausalLM": Architecture(cohere.model, "Command R: parallel attention and MLP, interleaved rope"),
    "Cohere2ForCausalLM": Architecture(cohere2.model, "Command R7B and A: windows with rope, full layers without"),
    "DbrxForCausalLM": Architecture(dbrx.model, "DBRX: mixture of experts, clamped q, k and v"),
    "Exaone4ForCausalLM": Architecture(exaone4.model, "EXAONE 4: norms after the branches, windows"),
    "GPT2LMHeadModel": Architecture(gpt2.model, "GPT-2: learned positions"),
    "GPTBigCodeForCausalLM": Architecture(gpt_bigcode.model, "StarCoder 1: learned positions, one key-value head"),
    "GemmaForCausalLM": Architecture(gemma.model, "Gemma 1"),
    "Gemma2ForCausalLM": Architecture(gemma2.model, "Gemma 2: windows, soft caps, four norms a block"),
    "Gemma3ForCausalLM": Architecture(gemma3.model, "Gemma 3, text only: windows, two ropes"),
    "Gemma3ForConditionalGeneration": Architecture(multimodal.gemma3_model, "Gemma 3 with vision: its text part"),
    "GlmForCausalLM": Architecture(glm.model, "GLM-4 9B: interleaved partial rope"),
    "Glm4ForCausalLM": Architecture(glm.sandwich_model, "GLM-4 0414 and Z1: the same with four norms a block"),
    "GraniteForCausalLM": Architecture(granite.model, "Granite 3: multipliers"),
    "IndexForCausalLM": Architecture(index.model, "Index 1.9B: a head with normalised rows"),
    "InternLM2ForCausalLM": Architecture(internlm2.model, "InternLM 2 and 2.5: packed q, k and v"),
    "LlamaForCausalLM": Architecture(llama.model, "Llama 1 to 3, SmolLM 1 and 2, TinyLlama, later Yi, many more"),
    "LlavaForConditionalGeneration": Architecture(multimodal.llava_model, "Llava and Pixtral: the text part"),
    "MiniCPMForCausalLM": Architecture(minicpm.model, "MiniCPM: multipliers, tied head"),
    "MinistralForCausalLM": Architecture(mistral.model, "Ministral 8B: windows on some layers"),
    "MistralForCausalLM": Architecture(mistral.model, "Mistral: a window where the config has one"),
    "Mistral3ForConditionalGeneration": Architecture(
        multimodal.llava_model, "Mistral Small 3.1 and later: the text part"
    ),
    "MixtralForCausalLM": Architecture(mixtral.model, "Mixtral: mixture of experts"),
    "Olmo2ForCausalLM": Architecture(olmo.model2, "OLMo 2: norms after the branches"),
    "Olmo3ForCausalLM": Architecture(olmo.model3, "OLMo 3: the same with windows"),
    "OrionForCausalLM": Architecture(orion.model, "Orion: LayerNorm"),
    "PhiForCausalLM": Architecture(phi.model, "Phi 1, 1.5 and 2: parallel attention and MLP, partial rope"),
    "Phi3ForCausalLM": Architecture(phi3.model, "Phi 3, 3.5-mini and 4: LongRoPE"),
    "Qwen2ForCausalLM": Architecture(qwen2.model, "Qwen 2 and 2.5"),
    "Qwen2VLForConditionalGeneration": Architecture(multimodal.qwen2_vl_model, "Qwen2-VL: the text part"),
    "Qwen2_5_VLForConditionalGeneration": Architecture(multimodal.qwen2_vl_model, "Qwen2.5-VL: the text part"),
    "Qwen3ForCausalLM": Architecture(qwen3.model, "Qwen 3: RMSNorm on each head of q and k"),
    "Qwen3MoeForCausalLM": Architecture(qwen3_moe.model, "Qwen 3 MoE"),
    "SeedOssForCausalLM": Architecture(seed_oss.model, "Seed-OSS"),
    "SmolLM3ForCausalLM": Architecture(smollm3.model, "SmolLM 3: no rope on every fourth layer"),
    "Starcoder2ForCausalLM": Architecture(starcoder2.model, "StarCoder 2: LayerNorm, biases, a window"),
    "YiForCausalLM": Architecture(yi.model, "The first Yi checkpoints"),
}


def read_model(config: object, where: str) -> Model:
    """The spec of a parsed config.json; `where` names the file in messages.

    Errors: UnsupportedModel for an architecture or feature that is not implemented, and for a key that nothing read;
    ConfigError for a missing or impossible value. Each is one line.
    """
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise ConfigError(f"{where}: expected a JSON object; is this the config.json of a model?")
    name = _architecture_name(config, where)
    cfg = HFConfig(config, where, name)
    _check_quantization(config, where)
    model = SUPPORTED[name].build(cfg)
    cfg.refuse_unread()
    return model


def _architecture_name(config: dict[str, object], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise HFConfig(config, where, "").error("architectures", names, "a list of one name")
    name: str = names[0]
    if name in UNSUPPORTED:
        raise UnsupportedModel(f"{where}: {name} is known but not supported yet: {UNSUPPORTED[name]}")
    if name not in SUPPORTED:
        shown = name if name.isprintable() and len(name) <= 80 else "this architecture"
        nearest = difflib.get_close_matches(name[:80], SUPPORTED, n=1, cutoff=0.0)[0]
        raise UnsupportedModel(f"{where}: {shown} is not supported; the nearest supported name is {nearest}")
    return name


def _check_quantization(config: dict[str, object], where: str) -> None:
    """Other methods than these store numbers that an unquantized reader would misread."""
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method", "gptq") if isinstance(quantization, dict) else quantization
    if method not in QUANTIZATIONS:
        expected = "polybit reads exl2, gptq and unquantized models"
        raise UnsupportedModel(f"{where}: quantization_config has quant_method {str(method)[:40]!r}; {expected}")
