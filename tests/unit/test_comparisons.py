"""What tests of other devices compare with can fail: near-ties, and folders of packed matrices."""

from pathlib import Path

import pytest
import torch

from closeness import relative_error
from greedy import TIE, near_ties
from oracle.tiny import save_tiny
from packed_model import WIDTHS, matrices_of, pack_matrix, pack_model
from polybit.format import exl2
from polybit.format.exl2 import Group, Layout
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model

LOGITS = torch.tensor([[0.0, 1.0, -1.0], [3.0, 2.99, -3.0]])


def test_the_likeliest_tokens_are_no_ties() -> None:
    assert near_ties([1, 0], LOGITS, torch.float16) == 0


def test_a_token_nearly_as_likely_is_a_tie_where_rounding_explains_it() -> None:
    assert near_ties([1, 1], LOGITS, torch.float16) == 1
    with pytest.raises(AssertionError, match=r"token 1 of 2 is 1, whose logit is 0\.01 below that of 0"):
        near_ties([1, 1], LOGITS, torch.float32)
    assert TIE < 10


def test_another_token_is_a_miss() -> None:
    with pytest.raises(AssertionError, match="token 0 of 2 is 0"):
        near_ties([0, 0], LOGITS, torch.float16)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel"])
def test_a_packed_folder_has_every_matrix_packed_and_every_width(tmp_path: Path, architecture: str) -> None:
    save_tiny(architecture, tmp_path)
    source = open_model(pack_model(tmp_path), LoadOptions(device="cpu", backend="reference", unpacked=False))
    packed = load(source)
    assert {type(matrix).__name__ for matrix in matrices_of(packed)} == {"PackedMatrix"}
    assert len(matrices_of(packed)) == len(source.spec.linears) + 1
    layouts = [exl2.read_layout(source.checkpoint, linear.key) for linear in source.spec.linears]
    assert {group.bits for layout in layouts for group in layout.groups} == set(WIDTHS)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (4, 0.2)])
def test_packing_keeps_the_weights(bits: int, error: float) -> None:
    random = torch.Generator().manual_seed(0)
    weight, layout = torch.randn(48, 96, generator=random), Layout((Group(bits, 64), Group(bits, 32)))
    packed = pack_matrix(weight, None, layout, random)
    assert relative_error(exl2.dequantize(packed)[:, :48], weight.T) < error
