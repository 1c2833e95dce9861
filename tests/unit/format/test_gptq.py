from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from polybit.errors import FormatError
from polybit.format.checkpoint import Checkpoint
from polybit.format.gptq import GptqTensor, dequantize, group_size, read, zero_offset
from polybit.format.packing import pack_codes
from polybit.spec import Linear

KEY = "model.layers.0.mlp.up_proj"
EXPECTED = Linear(KEY, in_features=64, out_features=32)
Tensors = dict[str, torch.Tensor]


def random_gptq(seed: int, groups_of_rows: torch.Tensor | None = None, zero_offset: int = 1) -> GptqTensor:
    """64 x 32 in four groups."""
    random = torch.Generator().manual_seed(seed)
    return GptqTensor(
        qweight=torch.randint(-(2**31), 2**31, (8, 32), generator=random, dtype=torch.int32),
        qzeros=torch.randint(-(2**31), 2**31, (4, 4), generator=random, dtype=torch.int32),
        scales=torch.rand(4, 32, generator=random).half(),
        g_idx=groups_of_rows,
        bias=None,
        zero_offset=zero_offset,
    )


def model_of(tensor: GptqTensor, group_of_row: list[int]) -> np.ndarray:
    """[64, 32] float16, one weight at a time."""
    words, zero_words = (part.numpy().view(np.uint32) for part in (tensor.qweight, tensor.qzeros))
    weights = np.empty((64, 32), np.float16)
    for (k, n), _ in np.ndenumerate(weights):
        group = group_of_row[k]
        q = int(words[k // 8, n]) >> (4 * (k % 8)) & 15
        zero = (int(zero_words[group, n // 8]) >> (4 * (n % 8)) & 15) + tensor.zero_offset
        weights[k, n] = np.float16(q - zero) * tensor.scales.numpy()[group, n]
    return weights


@given(seed=st.integers(0, 2**32), offset=st.sampled_from([0, 1]))
@settings(max_examples=10, deadline=None)
def test_dequantize_equals_the_definition(seed: int, offset: int) -> None:
    tensor = random_gptq(seed, zero_offset=offset)
    np.testing.assert_array_equal(dequantize(tensor).numpy(), model_of(tensor, [k // 16 for k in range(64)]))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_activation_order_takes_each_row_to_its_own_group(seed: int) -> None:
    groups = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(seed))  # uneven groups too
    tensor = random_gptq(seed, groups)
    np.testing.assert_array_equal(dequantize(tensor).numpy(), model_of(tensor, groups.tolist()))


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [None, torch.arange(64) % 4])
def test_other_devices_agree_to_the_bit(groups: torch.Tensor | None) -> None:
    tensor = random_gptq(3, groups)
    on_device = dequantize(tensor.to(torch.device("cuda")), 0.22).cpu()
    np.testing.assert_array_equal(on_device.numpy().view(np.uint16), dequantize(tensor, 0.22).numpy().view(np.uint16))


def test_prescale_multiplies_the_scales_in_half() -> None:
    tensor = random_gptq(0)
    scaled = replace(tensor, scales=(tensor.scales.float() * 0.3).half())
    assert torch.equal(dequantize(tensor, 0.3), dequantize(scaled))


@pytest.mark.parametrize(
    ("rows", "groups", "size"), [(4096, 32, 128), (4096, 1, 4096), (11008, 86, 128), (1376, 1, 2048)]
)
def test_group_size_is_the_power_of_two_that_reaches(rows: int, groups: int, size: int) -> None:
    assert group_size(rows, groups) == size


@pytest.mark.parametrize(
    ("config", "offset"),
    [
        ({}, 1),
        ({"quantization_config": {"bits": 4}}, 1),
        ({"quantization_config": {"checkpoint_format": "gptq"}}, 1),
        ({"quantization_config": {"checkpoint_format": "gptq_v2"}}, 0),
    ],
)
def test_zero_offset_by_checkpoint_format(config: dict[str, object], offset: int) -> None:
    assert zero_offset(config) == offset


def test_both_formats_of_the_same_zero_agree() -> None:
    zeros = torch.randint(1, 16, (4, 32))  # a zero of 0 has no form in the first format
    first, second = (
        replace(random_gptq(0), qzeros=pack_codes(zeros - offset), zero_offset=offset) for offset in (1, 0)
    )
    assert torch.equal(dequantize(first), dequantize(second))


# ---- reading


@pytest.fixture
def tensors() -> Tensors:
    made = random_gptq(1)
    return {f"{KEY}.{part}": getattr(made, part) for part in ("qweight", "qzeros", "scales")}


def write(folder: Path, tensors: Tensors) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def test_reads_what_is_there(tmp_path: Path, tensors: Tensors) -> None:
    tensor = read(write(tmp_path, tensors), KEY, EXPECTED)
    assert (tensor.in_features, tensor.out_features) == (64, 32)
    assert torch.equal(tensor.qweight, tensors[f"{KEY}.qweight"])
    assert tensor.num_bytes == sum(part.nbytes for part in tensors.values())


def test_scales_of_other_types_become_half(tmp_path: Path, tensors: Tensors) -> None:
    tensors[f"{KEY}.scales"] = tensors[f"{KEY}.scales"].bfloat16()
    assert read(write(tmp_path, tensors), KEY).scales.dtype == torch.float16


@pytest.mark.parametrize("g_idx", [torch.zeros(64), torch.arange(64) // 16])
def test_an_index_that_only_counts_up_is_none(tmp_path: Path, tensors: Tensors, g_idx: torch.Tensor) -> None:
    tensors[f"{KEY}.g_idx"] = g_idx.int()
    assert read(write(tmp_path, tensors), KEY).g_idx is None


def test_an_activation_order_is_kept(tmp_path: Path, tensors: Tensors) -> None:
    g_idx = tensors[f"{KEY}.g_idx"] = (torch.arange(64) % 4).int()
    tensor = read(write(tmp_path, tensors), KEY)
    assert torch.equal(tensor.group_of_row, g_idx.long())


@pytest.mark.parametrize("wanted", [False, True])
def test_a_bias_of_zeros_counts_only_where_the_model_has_one(tmp_path: Path, tensors: Tensors, wanted: bool) -> None:
    tensors[f"{KEY}.bias"] = torch.zeros(32).half()
    tensor = read(write(tmp_path, tensors), KEY, replace(EXPECTED, bias=wanted))
    assert (tensor.bias is not None) is wanted


def put(name: str, value: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"{KEY}.{name}": value})


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda t: t.pop(f"{KEY}.qzeros"), "qzeros is in none of the weight files"),
        (lambda t: t.pop(f"{KEY}.scales"), "scales is in none of the weight files"),
        (put("qzeros", torch.zeros(4, 8, dtype=torch.int32)), "qzeros is of 8-bit GPTQ .* only 4 bits are supported"),
        (put("qzeros", torch.zeros(4, 3, dtype=torch.int32)), "qzeros is of 3-bit GPTQ"),
        (put("qzeros", torch.zeros(4, 5, dtype=torch.int32)), "qzeros has 5 columns, expected 4"),
        (put("qzeros", torch.zeros(3, 4, dtype=torch.int32)), r"qzeros has shape \[3, 4\], expected \[4, 4\]"),
        (put("qzeros", torch.zeros(4, 4)), "qzeros is float32, expected int32"),
        (put("qweight", torch.zeros(64, 4, dtype=torch.int32)), "packed along its columns, as AWQ does"),
        (put("qweight", torch.zeros(4, 32, dtype=torch.int32)), r"qweight has shape \[4, 32\], expected \[8, 32\]"),
        (put("scales", torch.full((4, 32), 1e6)), "scales holds a value that is not finite in float16"),
        (put("g_idx", torch.full((64,), 4).int()), r"g_idx holds group numbers 4\.\.4, expected 0\.\.3"),
        (put("g_idx", torch.full((64,), -1).int()), r"g_idx holds group numbers -1\.\.-1"),
        (put("g_idx", torch.zeros(63).int()), r"g_idx has shape \[63\], expected \[64\]"),
        (put("bias", torch.ones(32).half()), "bias is there and not zero, but this layer has no bias"),
        (put("bias", torch.ones(31).half()), r"bias has shape \[31\], expected \[32\]"),
    ],
)
def test_damage_is_named(tmp_path: Path, tensors: Tensors, damage: Callable[[Tensors], None], finding: str) -> None:
    damage(tensors)
    with pytest.raises(FormatError, match=finding) as error:
        read(write(tmp_path, tensors), KEY, EXPECTED)
    assert "\n" not in str(error.value)


def test_a_bias_that_should_be_there(tmp_path: Path, tensors: Tensors) -> None:
    with pytest.raises(FormatError, match=rf"comes without {KEY}\.bias"):
        read(write(tmp_path, tensors), KEY, replace(EXPECTED, bias=True))
