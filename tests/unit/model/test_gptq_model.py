"""A GPTQ folder says what a dense folder of the same numbers says, in both spellings of its zeros."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import assert_close
from polybit import arch
from polybit.format import gptq
from polybit.format.gptq import GptqTensor
from polybit.format.packing import pack_codes
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows
from random_model import TINY_LLAMA, write_random_model


def gptq_of(weight: torch.Tensor, zero_offset: int) -> GptqTensor:
    """Round to nearest with 16 rows a group; weight [N, K]."""
    grouped = weight.T.float().reshape(-1, 16, weight.shape[0])  # [G, 16, N]
    low, high = grouped.amin(1), grouped.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round().clamp(1, 15)
    q = (grouped / scales[:, None] + zeros[:, None]).round().clamp(0, 15).flatten(0, 1)
    return GptqTensor(pack_codes(q.T).T.contiguous(), pack_codes(zeros - zero_offset), scales, None, None, zero_offset)


def quantize_folder(dense: Path, folder: Path, zero_offset: int) -> None:
    """`folder` in GPTQ; the matrices of `dense` become what it holds."""
    tensors = load_file(dense / "model.safetensors")
    packed = dict(tensors)
    for linear in arch.read_model(TINY_LLAMA, where="test").linears:
        matrix = gptq_of(packed.pop(f"{linear.key}.weight"), zero_offset)
        packed |= {f"{linear.key}.{part}": getattr(matrix, part) for part in ("qweight", "qzeros", "scales")}
        tensors[f"{linear.key}.weight"] = gptq.dequantize(matrix).T.contiguous()
    save_file(tensors, dense / "model.safetensors")
    folder.mkdir()
    save_file(packed, folder / "model.safetensors")


@pytest.mark.parametrize(("checkpoint_format", "zero_offset"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize("unpacked", [False, True])
def test_gptq_equals_dense(tmp_path: Path, checkpoint_format: str, zero_offset: int, unpacked: bool) -> None:
    dense, folder = write_random_model(tmp_path / "dense"), tmp_path / "gptq"
    quantize_folder(dense, folder, zero_offset)
    quantization = {"quant_method": "gptq", "bits": 4, "checkpoint_format": checkpoint_format}
    (folder / "config.json").write_text(json.dumps({**TINY_LLAMA, "quantization_config": quantization}))
    options, tokens = LoadOptions(device="cpu", unpacked=unpacked), torch.arange(20)
    models = [load(open_model(path, options)) for path in (folder, dense)]
    ours, theirs = (model.forward(tokens, *whole_rows(1, 20, model.device)) for model in models)
    assert_close(ours, theirs, "model")
