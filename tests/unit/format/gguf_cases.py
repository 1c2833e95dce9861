"""Tiny GGUF files of every family, made with the `gguf` library's writer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, LAYERS = 64, 4, 2, 16, 96, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

Tensors = dict[str, np.ndarray]


@dataclass
class Case:
    """Everything that goes into a file; tests change what they are about before `write`."""

    arch: str
    settings: dict[str, Any]  # below `{arch}.`
    tensors: Tensors
    tokenizer: dict[str, Any]  # below `tokenizer.`
    general: dict[str, Any] = field(default_factory=dict)
    types: Mapping[str, GGMLQuantizationType] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, self.arch)
        prefixed = ((self.arch, self.settings), ("tokenizer", self.tokenizer), ("general", self.general))
        for prefix, values in prefixed:
            for name, value in values.items():
                add(writer, f"{prefix}.{name}", value)
        for name, tensor in self.tensors.items():
            kind = self.types.get(name)
            data = tensor if kind is None else quantize(tensor, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def byte_level_tokenizer() -> dict[str, Any]:
    """Bytes, a few words, one special and one user-defined token."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|end|>", "<tag>"]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": "smollm",
        "ggml.tokens": tokens,
        "ggml.token_type": [NORMAL] * (len(tokens) - 2) + [CONTROL, USER_DEFINED],
        "ggml.merges": merges,
        "ggml.bos_token_id": tokens.index("<|end|>"),
        "ggml.eos_token_id": tokens.index("<|end|>"),
        "chat_template": "{{ messages }}",
    }


def sentence_piece_tokenizer() -> dict[str, Any]:
    """Bytes and a few pieces, the better the earlier."""
    special, pieces = ["<unk>", "<s>", "</s>"], ["▁t", "he", "▁the", "▁", *"abcdeht", "ab", "abc", "bc"]
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *every_byte, *pieces, "  "]
    return {
        "ggml.model": "llama",
        "ggml.tokens": tokens,
        "ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [-1000.0],
        "ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [USER_DEFINED],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    }


def make(arch: str) -> Case:
    """A sound file of a family, with random weights."""
    settings = {
        "block_count": LAYERS,
        "context_length": 256,
        "embedding_length": HIDDEN,
        "feed_forward_length": WIDTH,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    gemma, tokenizer = arch.startswith("gemma"), byte_level_tokenizer()
    if gemma:
        tokenizer = sentence_piece_tokenizer() | {"ggml.add_space_prefix": False}
        settings |= {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    if arch == "qwen3":
        settings |= {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    if arch in ("gemma2", "gemma3"):
        settings |= {"attention.sliding_window": 32}
    if arch == "phi3":
        settings |= {"rope.dimension_count": HEAD_DIM, "rope.scaling.original_context_length": 256}
    return Case(arch, settings, tensors_of(arch, len(tokenizer["ggml.tokens"])), tokenizer)


def tensors_of(arch: str, vocabulary: int) -> Tensors:
    shapes = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block_shapes(arch).items()}
    if arch in ("llama", "phi3"):
        shapes["output.weight"] = (vocabulary, HIDDEN)
    random = np.random.default_rng(7)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def block_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    wide, narrow = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
        "attn_output.weight": (HIDDEN, wide),
        "ffn_down.weight": (HIDDEN, WIDTH),
    }
    if arch == "phi3":
        return shapes | {"attn_qkv.weight": (wide + 2 * narrow, HIDDEN), "ffn_up.weight": (2 * WIDTH, HIDDEN)}
    rows = {"q": wide, "k": narrow, "v": narrow}
    shapes |= {f"attn_{name}.weight": (size, HIDDEN) for name, size in rows.items()}
    shapes |= {f"ffn_{name}.weight": (WIDTH, HIDDEN) for name in ("gate", "up")}
    if arch == "qwen2":
        shapes |= {f"attn_{name}.bias": (size,) for name, size in rows.items()}
    if arch in ("qwen3", "gemma3"):
        shapes |= {f"attn_{name}_norm.weight": (HEAD_DIM,) for name in ("q", "k")}
    if arch in ("gemma2", "gemma3"):
        shapes |= {f"post_{name}_norm.weight": (HIDDEN,) for name in ("attention", "ffw")}
    return shapes
