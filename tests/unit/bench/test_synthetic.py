"""Random weights: the same for a seed, laid out as files are, and harmless to activations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polybit.bench.subject import SyntheticSubject
from polybit.bench.synthetic import SyntheticWeights
from polybit.format.exl2 import Exl2Tensor, dequantize, to_tensors
from polybit.modules.step import whole_rows
from unit.bench.subjects import synthetic


def weights(folder: Path, **wish: Any) -> SyntheticWeights:
    subject = synthetic(folder, **wish)
    assert isinstance(subject, SyntheticSubject)
    return subject.weights


def equal(first: Exl2Tensor, second: Exl2Tensor) -> bool:
    parts, others = to_tensors("", first), to_tensors("", second)
    return parts.keys() == others.keys() and all(torch.equal(parts[name], others[name]) for name in parts)


def test_a_seed_makes_the_same_matrix_whatever_was_made_before(tmp_path: Path) -> None:
    made = weights(tmp_path)
    first, last = made.model.linears[0], made.model.linears[-1]
    early = made.tensor(last)
    made.tensor(first)
    assert equal(made.tensor(last), early)
    assert not equal(replace(made, seed=1).tensor(last), early)
    assert not torch.equal(made.tensor(made.model.linears[4]).q_weight, made.tensor(made.model.linears[5]).q_weight)


def test_matrices_of_one_input_share_an_order(tmp_path: Path) -> None:
    made = weights(tmp_path)
    attn, mlp = made.model.blocks[0].attn, made.model.blocks[0].mlp
    q, k, v, o, gate, up = (
        made.tensor(node).q_invperm for node in (attn.q, attn.k, attn.v, attn.o, mlp.linears[0], mlp.linears[1])
    )
    assert torch.equal(q, k)
    assert torch.equal(q, v)
    assert torch.equal(gate, up)
    assert len({tuple(order.tolist()) for order in (q, o, gate)}) == 3


@pytest.mark.parametrize("bits", [2.4, 4.0, 7.9])
def test_weights_are_as_large_as_keeps_a_product_at_one(tmp_path: Path, bits: float) -> None:
    made = weights(tmp_path, bits=bits, hidden_size=512, intermediate_size=1024)
    for node in (*made.model.linears, made.model.head.linear):
        mean_square = float(dequantize(made.tensor(node)).double().square().mean())
        assert mean_square * node.in_features == pytest.approx(1.0, rel=0.2)


def test_layout_and_bias_are_what_the_description_says(tmp_path: Path) -> None:
    made = weights(tmp_path, attention_bias=True, vocab_size=97)
    tensor = made.tensor(made.model.blocks[1].attn.k)
    assert tensor.layout == made.recipe.layout(made.model.blocks[1].attn.k)
    assert tensor.bias is not None
    assert tensor.q_invperm.sort().values.tolist() == list(range(128))
    assert tensor.num_bits == made.recipe.stored_bits(made.model.blocks[1].attn.k)
    assert made.tensor(made.model.head.linear).out_features == 128  # 97 padded
    assert made.head(made.model.head, None)(torch.ones(1, 128)).shape == (1, 97)


@pytest.mark.parametrize("offloaded", [0, 2])
def test_a_plan_changes_where_parts_lie_and_not_what_they_are(tmp_path: Path, offloaded: int) -> None:
    subject = synthetic(tmp_path, num_hidden_layers=3)
    assert isinstance(subject, SyntheticSubject)
    (whole,) = subject.setup.plan.shares
    shares = tuple(
        replace(whole, device=torch.device("cpu", i), blocks=blocks) for i, blocks in enumerate((range(1), range(1, 3)))
    )
    plan = replace(subject.setup.plan, shares=shares, offloaded=range(3 - offloaded, 3))
    spread = replace(subject, setup=replace(subject.setup, plan=plan)).build(None)
    assert [len(stage.layers) for stage in spread.stages] == [1, 2]
    tokens, run = torch.arange(8), whole_rows(1, 8, torch.device("cpu"))
    assert torch.equal(spread.forward(tokens, *run), subject.build(None).forward(tokens, *run))


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"architectures": ["Gemma2ForCausalLM"], "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"}
        | {"query_pre_attn_scalar": 32, "sliding_window": 64, "hidden_act": None, "tie_word_embeddings": True},
        {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    ],
    ids=["llama", "gemma2", "mixtral"],
)
def test_activations_stay_small_through_many_blocks(tmp_path: Path, entries: dict[str, Any]) -> None:
    model = synthetic(tmp_path, bits=3.0, num_hidden_layers=24, **entries).build(None)
    step, store = whole_rows(1, 16, model.device)
    x = model.embed(torch.arange(16), step)
    with torch.inference_mode():
        for layer in model.stages[0].layers:
            x = layer(x, step, store)
        logits = model.logits(x)
    assert float(x.abs().max()) < 1000
    assert 0.1 < float(logits.std()) < 10
