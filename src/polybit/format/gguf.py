"""A GGUF file as a source: written out once as an ordinary Hugging Face folder, which everything else reads.

Tensors stream through RAM a slice at a time. What was quantized in the file is dequantized, and so keeps that loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from polybit.errors import FormatError, UnsupportedModel
from polybit.format.files import atomic_write_json, unwritable
from polybit.format.gguf_families import ROPE_TENSORS, TOP_NAMES, Config, Family, family_of, make_config
from polybit.format.gguf_header import Header, TensorInfo, read_header
from polybit.format.gguf_tokenizer import make_tokenizer
from polybit.format.shards import ShardWriter

SHARD_BYTES = 1 << 30
SLICE_ELEMENTS = 1 << 24  # dequantized at once, in float32
Progress = Callable[[int, int], None]  # tensors done, tensors in all


def export(
    gguf_file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16, progress: Progress | None = None
) -> None:
    """Write config.json, the tokenizer's files, generation_config.json and model*.safetensors into `folder`.

    config.json comes last: where it is, the folder is complete. FormatError: the file is damaged, the folder is not
    empty or cannot be written, the `gguf` library is missing. UnsupportedModel: a family, tokenizer or type not read.
    """
    source, family = _open(gguf_file)
    metadata = source.header.metadata
    names = {info.name: hf_name(info.name, family, gguf_file) for info in source.header.tensors.values()}
    config = make_config(source.header, family, source.floats) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    tokenizer, tokenizer_config = make_tokenizer(metadata, config, family.strips_after_special)
    _make_empty(folder)
    _write_weights(source, family, names, config, folder, dtype, progress)
    atomic_write_json(folder / "tokenizer.json", tokenizer, indent=None, ascii_only=False)
    atomic_write_json(folder / "tokenizer_config.json", tokenizer_config, indent=2, ascii_only=False)
    atomic_write_json(folder / "generation_config.json", _generation_config(source.header, config), indent=2)
    atomic_write_json(folder / "config.json", config, indent=2)


def read_config(gguf_file: Path) -> Config:
    """The config.json that `export` would write; no tensor but small tables is read. Raises as `export`."""
    source, family = _open(gguf_file)
    return make_config(source.header, family, source.floats)


def _open(gguf_file: Path) -> tuple["GgufFile", Family]:
    source = GgufFile(read_header(gguf_file), _Quants.load())
    metadata = source.header.metadata
    if metadata.count("split.count", 1) > 1:
        raise UnsupportedModel(f"{gguf_file} is one part of several; join them with `llama-gguf-split --merge` first")
    return source, family_of(metadata)


# ---- tensors


@dataclass(frozen=True)
class _Quants:
    """What is used of the `gguf` library: elements and bytes of a block by type, and the arithmetic."""

    block_sizes: Mapping[int, tuple[int, int]]
    name_of: Callable[[int], str]
    dequantize: Callable[[np.ndarray[Any, Any], int], np.ndarray[Any, np.dtype[np.float32]]]

    @classmethod
    def load(cls) -> "_Quants":
        try:
            from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError as error:
            raise FormatError("reading GGUF needs the gguf library; run: pip install 'polybit[gguf]'") from error
        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        return cls(sizes, lambda i: GGMLQuantizationType(i).name, lambda d, i: dequantize(d, GGMLQuantizationType(i)))


class GgufFile:
    """Tensors of one file by name, dequantized."""

    def __init__(self, header: Header, quants: _Quants) -> None:
        self.header = header
        self._quants = quants
        self._bytes = np.memmap(header.path, np.uint8, mode="r")

    def floats(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All of a small tensor."""
        info = self.header.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.header.path} holds no tensor {name}; fetch the file again")
        return self._dequantize(info, self._rows(info)).reshape(info.shape)

    def tensor(self, info: TensorInfo, dtype: torch.dtype, offset: float = 0.0) -> Tensor:
        """A tensor plus `offset`, which is added in float32. FormatError: a value does not fit `dtype`."""
        rows = self._rows(info)
        out = torch.empty(len(rows), info.shape[-1], dtype=dtype)
        step = max(1, SLICE_ELEMENTS // info.shape[-1])
        for start in range(0, len(rows), step):
            values = torch.from_numpy(np.require(self._dequantize(info, rows[start : start + step]), requirements="W"))
            out[start : start + step] = values + offset if offset else values
        if not out.isfinite().all():
            found = f"{self.header.path}: tensor {info.name} holds values that are not finite in {dtype}"
            raise FormatError(f"{found}; try bfloat16, or fetch the file again")
        return out.reshape(info.shape)

    def _rows(self, info: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[rows, bytes of a row]"""
        block, block_bytes = self._block(info)
        if not info.shape or 0 in info.shape or info.shape[-1] % block:
            raise self._damaged(info, f"has shape {list(info.shape)}, which {self._type(info)} cannot have")
        num_rows, row_bytes = prod(info.shape[:-1]), info.shape[-1] // block * block_bytes
        end = info.offset + num_rows * row_bytes
        if end > len(self._bytes):
            raise self._damaged(info, f"ends at byte {end}, but the file has {len(self._bytes)}")
        return np.asarray(self._bytes[info.offset : end]).reshape(num_rows, row_bytes)

    def _block(self, info: TensorInfo) -> tuple[int, int]:
        if info.type_id not in self._quants.block_sizes:
            raise UnsupportedModel(f"{self.header.path}: tensor {info.name} is of unknown type {info.type_id}")
        return self._quants.block_sizes[info.type_id]

    def _dequantize(
        self, info: TensorInfo, rows: np.ndarray[Any, np.dtype[np.uint8]]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        try:
            with np.errstate(all="ignore"):  # what damage makes infinite is reported with the tensor's name
                return self._quants.dequantize(rows, info.type_id)
        except NotImplementedError as error:
            raise UnsupportedModel(
                f"{self.header.path}: tensor {info.name} is of type {self._type(info)}, which cannot be dequantized"
            ) from error

    def _type(self, info: TensorInfo) -> str:
        return self._quants.name_of(info.type_id)

    def _damaged(self, info: TensorInfo, finding: str) -> FormatError:
        return FormatError(f"{self.header.path}: tensor {info.name} {finding}; fetch the file again")


def hf_name(name: str, family: Family, where: Path) -> str | None:
    """A tensor's name in a Hugging Face folder; None for tables that config.json holds. UnsupportedModel: unknown."""
    if name in ROPE_TENSORS:
        return None
    match name.split("."):
        case [part, kind] if part in TOP_NAMES:
            return f"{TOP_NAMES[part]}.{kind}"
        case ["blk", layer, part, kind] if part in family.names:
            return f"model.layers.{layer}.{family.names[part]}.{kind}"
    raise UnsupportedModel(f"{where}: tensor {name[:80]!r} is not known in {family.model_type} models")


def _write_weights(
    source: GgufFile,
    family: Family,
    names: Mapping[str, str | None],
    config: Config,
    folder: Path,
    dtype: torch.dtype,
    progress: Progress | None,
) -> None:
    infos = list(source.header.tensors.values())
    largest = max(prod(info.shape) for info in infos) * dtype.itemsize
    with ShardWriter(folder, max(SHARD_BYTES, largest), stem="model", metadata={"format": "pt"}) as writer:
        for done, info in enumerate(infos, start=1):
            name = names[info.name]
            if name is not None:
                writer.add({name: _converted(source, info, family, config, dtype)})
            if progress is not None:
                progress(done, len(infos))
        paths = writer.finish()
    if len(paths) > 1:
        _write_index(folder, paths)


def _converted(source: GgufFile, info: TensorInfo, family: Family, config: Config, dtype: torch.dtype) -> Tensor:
    """The tensor as Hugging Face's model of this family wants it."""
    part = info.name.split(".")[-2]
    tensor = source.tensor(info, dtype, -family.norm_offset if part.endswith("norm") else 0.0)
    if not family.interleaved_rope or part not in ("attn_q", "attn_k"):
        return tensor
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    if heads == 0 or len(tensor) % (2 * heads):
        raise FormatError(f"{source.header.path}: tensor {info.name} has {len(tensor)} rows for {heads} heads")
    return halves_apart(tensor, heads)


def halves_apart(tensor: Tensor, heads: int) -> Tensor:
    """Rows [heads * D, ...]: of each head, from pairs side by side (0, D/2, 1, D/2 + 1, ...) to their natural order."""
    pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


# ---- the other files


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = next(folder.iterdir(), None)
    except OSError as error:
        raise unwritable(folder, error) from error
    if occupied is not None:
        raise FormatError(f"{folder} is not empty (it holds {occupied.name}); give a new folder")


def _write_index(folder: Path, paths: list[Path]) -> None:
    """What transformers needs to find tensors in several files."""
    weight_map: dict[str, str] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            weight_map |= dict.fromkeys(file.keys(), path.name)
    total_size = sum(path.stat().st_size for path in paths)
    atomic_write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total_size}, "weight_map": weight_map}, 2
    )


def _generation_config(header: Header, config: Config) -> Config:
    """Token ids; where the file names tokens that end a turn besides the one that ends a text, all of them end."""
    ids: Config = {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None
    }
    keys = [f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(header.metadata.count(key) for key in keys if key in header.metadata))
    return ids | ({"eos_token_id": ends} if len(ends) > 1 else {})
