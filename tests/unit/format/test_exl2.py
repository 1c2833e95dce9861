from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from polybit import spec
from polybit.errors import FormatError
from polybit.format import exl2
from polybit.format.checkpoint import Checkpoint
from polybit.format.exl2 import (
    Exl2Tensor,
    Group,
    Layout,
    dequantize,
    encode,
    group_scales,
    read,
    read_layout,
    to_tensors,
)
from unit.format.exl2_cases import Case, cases, layouts, model_of

KEY = "model.layers.3.mlp.down_proj"
EXPECTED = spec.Linear(KEY, in_features=128, out_features=40)
Tensors = dict[str, torch.Tensor]


def bit_pattern(half: torch.Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(half).view(np.uint16)


# ---- arithmetic


@given(case=cases(), prescale=st.sampled_from([1.0, 0.0625, 0.22]))
@settings(max_examples=40, deadline=None)
def test_dequantize_equals_the_definition(case: Case, prescale: float) -> None:
    tensor = case.encode()
    np.testing.assert_array_equal(bit_pattern(dequantize(tensor, prescale)), bit_pattern(model_of(tensor, prescale)))


@pytest.mark.gpu
@given(case=cases(), prescale=st.sampled_from([1.0, 0.22]))
@settings(max_examples=40, deadline=None)
def test_other_devices_agree_to_the_bit(case: Case, prescale: float) -> None:
    tensor, device = case.encode(), torch.device("cuda")
    moved = encode(
        case.q.to(device), case.codes.to(device), case.scale_max.to(device), case.layout, case.perm.to(device)
    )
    assert torch.equal(moved.q_weight.cpu(), tensor.q_weight)
    assert torch.equal(moved.q_scale.cpu(), tensor.q_scale)
    on_device = dequantize(tensor.to(device), prescale).cpu()
    np.testing.assert_array_equal(bit_pattern(on_device), bit_pattern(dequantize(tensor, prescale)))


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_encode_keeps_every_number_and_pads_with_zeros(case: Case) -> None:
    columns = case.q.shape[1]
    tensor = case.encode()
    weights = dequantize(tensor)[case.perm]  # back in sorted rows
    scales = group_scales(case.codes, case.scale_max)
    start = 0
    for group, scale in zip(case.layout.groups, scales, strict=True):
        rows = slice(start, start + group.rows)
        signed = (case.q[rows] - 2 ** (group.bits - 1)).half()
        assert torch.equal(weights[rows, :columns], signed * scale)
        start = rows.stop
    assert tensor.out_features % 32 == 0
    assert not weights[:, columns:].any()
    assert tensor.bias is None or not tensor.bias[columns:].any()


@given(case=cases())
@settings(max_examples=25, deadline=None)
def test_num_bits_are_the_bits_stored(case: Case) -> None:
    tensor = case.encode()
    assert tensor.num_bits == 8 * sum(part.nbytes for part in to_tensors(KEY, tensor).values())
    assert tensor.num_bytes * 8 == tensor.num_bits


@given(layout=layouts())
def test_spans_cover_all_rows_once_per_width(layout: Layout) -> None:
    spans = list(layout.spans())
    assert [span.bits for span in spans] == sorted({group.bits for group in layout.groups}, reverse=True)
    for edges, total in (("rows", layout.in_features), ("packed_rows", layout.packed_rows)):
        slices = [getattr(span, edges) for span in spans]
        assert [s.start for s in slices] == [0, *(s.stop for s in slices[:-1])]
        assert slices[-1].stop == total


def test_permutation_goes_from_sorted_rows_to_input_features() -> None:
    layout, perm = Layout((Group(8, 32),)), torch.randperm(32)
    q = torch.arange(32)[:, None] + 128  # sorted row i holds the value i
    tensor = encode(q, torch.tensor([[15]]), torch.tensor([1.0]).half(), layout, perm)
    assert torch.equal(dequantize(tensor)[perm, 0], torch.arange(32).half())
    assert torch.equal(tensor.perm, perm)


@pytest.mark.parametrize(
    ("groups", "finding"),
    [
        ((), "no group"),
        ((Group(7, 32),), "7 bits"),
        ((Group(4, 48),), "48 rows"),
        ((Group(4, 0),), "0 rows"),
        ((Group(3, 32), Group(4, 32)), "3, 4 bits in this order, expected descending"),
    ],
)
def test_layouts_that_no_file_may_have(groups: tuple[Group, ...], finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        Layout(groups)


# ---- reading


@pytest.fixture
def tensors() -> Tensors:
    """A sound matrix of 128 x 40 (stored as 64 columns): 64 rows at 5 bits, 64 at 3."""
    layout = Layout((Group(5, 32), Group(5, 32), Group(3, 64)))
    q = torch.cat([torch.randint(0, 32, (64, 40)), torch.randint(0, 8, (64, 40))])
    return to_tensors(KEY, encode(q, torch.randint(0, 16, (3, 40)), torch.rand(3).half(), layout, torch.randperm(128)))


def write(folder: Path, tensors: Tensors) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "output.safetensors")
    return Checkpoint.open(folder)


def test_reads_what_was_written(tmp_path: Path, tensors: Tensors) -> None:
    tensor = read(write(tmp_path, tensors), KEY, EXPECTED)
    assert to_tensors(KEY, tensor).keys() == tensors.keys()
    assert all(torch.equal(part, tensors[name]) for name, part in to_tensors(KEY, tensor).items())
    assert tensor.layout.groups == (Group(5, 32), Group(5, 32), Group(3, 64))


def test_the_layout_can_be_read_alone(tmp_path: Path, tensors: Tensors) -> None:
    assert read_layout(write(tmp_path, tensors), KEY) == read(write(tmp_path, tensors), KEY).layout
    tensors[f"{KEY}.q_groups"][0] = 7
    with pytest.raises(FormatError, match=r"q_groups holds a group of 7 bits.*model"):
        read_layout(write(tmp_path, tensors), KEY)


def test_parts_of_one_matrix_may_lie_in_different_files(tmp_path: Path, tensors: Tensors) -> None:
    first = tensors.pop(f"{KEY}.q_weight")
    save_file({f"{KEY}.q_weight": first}, tmp_path / "output-00002-of-00002.safetensors")
    save_file(tensors, tmp_path / "output-00001-of-00002.safetensors")
    tensor = read(Checkpoint.open(tmp_path), KEY, EXPECTED)
    assert torch.equal(tensor.q_weight, first)


def test_a_stored_forward_permutation_is_not_looked_at(tmp_path: Path, tensors: Tensors) -> None:
    tensors[f"{KEY}.q_perm"] = torch.zeros(1, dtype=torch.int32)
    read(write(tmp_path, tensors), KEY, EXPECTED)


def test_a_bias_is_read_where_the_model_has_one(tmp_path: Path, tensors: Tensors) -> None:
    bias = tensors[f"{KEY}.bias"] = torch.randn(64).half()
    tensor = read(write(tmp_path, tensors), KEY, replace(EXPECTED, bias=True))
    assert tensor.bias is not None
    assert torch.equal(tensor.bias, bias)


def test_groups_reach_beyond_signed_16_bits(tmp_path: Path) -> None:
    """First packed rows above 32767 are negative numbers in the file's signed type."""
    layout = Layout((Group(8, 32 * 4200), Group(8, 32)))
    tensor = encode(torch.zeros(layout.in_features, 1), torch.zeros(2, 1), torch.ones(2), layout, torch.arange(134432))
    assert int(tensor.q_groups[3]) < 0
    read_back = read(write(tmp_path, to_tensors(KEY, tensor)), KEY)
    assert read_back.layout == layout


def change(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[f"{KEY}.{name}"] = edit(tensors[f"{KEY}.{name}"])

    return apply


def put(name: str, *at: int, value: float) -> Callable[[Tensors], None]:
    return change(name, lambda tensor: tensor.index_put(tuple(map(torch.tensor, at)), tensor.new_tensor(value)))


PARTS = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")

DAMAGES = [
    *((f"without {part}", lambda t, part=part: t.pop(f"{KEY}.{part}"), f"{part} is in none of") for part in PARTS),
    *(
        (f"{part} as float64", change(part, torch.Tensor.double), rf"{part} is float64, expected \w+ ")
        for part in PARTS
    ),
    *((f"{part} cut", change(part, lambda t: t[:-1]), r"\.q_\w+ .*\(output.safetensors\); ") for part in PARTS),
    *((f"{part} empty", change(part, lambda t: t[:0]), r"\.q_\w+ .*\(output.safetensors\); ") for part in PARTS),
    *((f"{part} deeper", change(part, lambda t: t[..., None]), rf"{part} has shape") for part in PARTS),
    ("width 7", put("q_groups", 0, value=7), "q_groups holds a group of 7 bits, expected one of 2, 3, 4, 5, 6, 8 "),
    ("ascending", put("q_groups", 4, value=6), "5, 6 bits in this order, expected descending"),
    ("rows not of 32", put("q_groups", 3, value=6), "q_groups holds a group of 38 rows, expected a multiple of 32"),
    ("starts late", put("q_groups", 1, value=5), "q_groups starts at packed row 5, expected 0"),
    ("backwards", put("q_groups", 3, value=30), "q_groups holds a group from packed row 30 to 10, which is empty"),
    ("more rows", change("q_invperm", lambda t: torch.arange(160).int()), "q_groups covers 128 rows, but .* has 160"),
    ("repeated index", put("q_invperm", 0, value=1), r"q_invperm is not a permutation of 0\.\.127"),
    ("index out of range", put("q_invperm", 0, value=-1), r"q_invperm is not a permutation"),
    ("infinite scale", put("q_scale_max", 1, value=float("inf")), "q_scale_max holds a value that is not finite"),
    ("bias of wrong size", lambda t: t.update({f"{KEY}.bias": torch.zeros(40).half()}), r"bias has shape \[40\]"),
    ("odd columns", change("q_weight", lambda t: t[:, :60]), "q_weight has 60 columns, expected a multiple of 8"),
]


@pytest.mark.parametrize(("damage", "finding"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damage_is_named(tmp_path: Path, tensors: Tensors, damage: Callable[[Tensors], None], finding: str) -> None:
    damage(tensors)
    with pytest.raises(FormatError, match=finding) as error:
        read(write(tmp_path, tensors), KEY)
    assert KEY in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("expected", "finding"),
    [
        (replace(EXPECTED, in_features=512), "q_groups covers 128 rows, but in_features is 512 (output.safetensors)"),
        (replace(EXPECTED, out_features=96), "q_weight has 64 columns, expected 96 (output.safetensors)"),
        (replace(EXPECTED, bias=True), f"comes without {KEY}.bias, but this layer has one"),
    ],
)
def test_a_matrix_of_another_model_is_refused(
    tmp_path: Path, tensors: Tensors, expected: spec.Linear, finding: str
) -> None:
    with pytest.raises(FormatError) as error:
        read(write(tmp_path, tensors), KEY, expected)
    assert finding in str(error.value)


def test_a_bias_too_many_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    tensors[f"{KEY}.bias"] = torch.zeros(64).half()
    with pytest.raises(FormatError, match=r"down_proj\.bias is there, but this layer has none"):
        read(write(tmp_path, tensors), KEY, EXPECTED)


def test_early_files_without_padding_are_read(tmp_path: Path, tensors: Tensors) -> None:
    narrow = tensors | {
        f"{KEY}.q_weight": tensors[f"{KEY}.q_weight"][:, :40],
        f"{KEY}.q_scale": tensors[f"{KEY}.q_scale"][:, :5],
    }
    tensor: Exl2Tensor = read(write(tmp_path, narrow), KEY, EXPECTED)
    padded = Exl2Tensor(*(tensors[f"{KEY}.{part}"] for part in PARTS))
    assert torch.equal(exl2.dequantize(tensor), exl2.dequantize(padded)[:, :40])
