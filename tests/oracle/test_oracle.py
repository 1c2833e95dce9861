"""Every registered architecture against transformers, on tiny random models: tensor names, logits, greedy tokens."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from oracle.tiny import RECIPES, VOCABULARY, save_tiny
from oracle.variants import VARIANTS, Variant
from polybit import spec
from polybit.arch import SUPPORTED
from polybit.cache import PAGE_TOKENS, KVPool
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import ModelSource, open_model
from polybit.modules.step import Step, whole_rows

PROMPT = 40  # tokens; several windows long
NEW_TOKENS = 12
LOGIT_ERROR = 1e-5  # relative, Frobenius; a wrong GELU or epsilon is three times that

CASES = {name: Variant(name) for name in RECIPES} | VARIANTS


@dataclass(frozen=True)
class Pair:
    source: ModelSource
    model: Model
    oracle: PreTrainedModel


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("tiny")
    oracle = save_tiny(case.architecture, folder, **case.overrides)
    source = open_model(folder, LoadOptions(device="cpu", dtype="float32", max_seq_len=case.max_seq_len))
    return Pair(source, load(source), oracle)


def test_every_registered_architecture_has_a_tiny_model() -> None:
    assert set(RECIPES) == set(SUPPORTED)


def test_the_spec_names_every_tensor_on_disk_and_no_other(pair: Pair) -> None:
    checkpoint, model = pair.source.checkpoint, pair.source.spec
    on_disk = {n: checkpoint.shape(n) for n in checkpoint.names() if not n.startswith(model.companions)}
    named = named_shapes(model)
    if model.head.tied and "lm_head.weight" not in on_disk:
        named = {name: shape for name, shape in named.items() if not name.endswith("lm_head.weight")}
    assert on_disk == named


def test_logits_equal_transformers(pair: Pair) -> None:
    prompt = tokens(seed=1)
    expected = pair.oracle(prompt[None], use_cache=False).logits[0].detach()
    step, store = whole_rows(1, PROMPT, pair.model.device)
    error = relative_error(pair.model.forward(prompt, step, store), expected)
    assert error <= LOGIT_ERROR, f"relative error {error:.1e}"


def test_greedy_tokens_equal_transformers(pair: Pair) -> None:
    prompt = tokens(seed=2)
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "eos_token_id": None}
    expected = pair.oracle.generate(prompt[None], attention_mask=torch.ones(1, PROMPT), **settings)[0, PROMPT:]
    assert greedy(pair.model, prompt) == expected.tolist()


@pytest.mark.parametrize("architecture", [name for name in RECIPES if name.endswith("ConditionalGeneration")])
def test_the_names_that_transformers_writes_today_mean_the_same(architecture: str, tmp_path: Path) -> None:
    """model.language_model.*, model.visual.*, lm_head, instead of the older names that `save_pretrained` restores."""
    oracle = save_tiny(architecture, tmp_path)
    older = set(open_model(tmp_path, LoadOptions(device="cpu")).checkpoint.names())
    save_file(
        {name: tensor.contiguous() for name, tensor in untied_state(oracle).items()}, tmp_path / "model.safetensors"
    )
    assert set(open_model(tmp_path, LoadOptions(device="cpu")).checkpoint.names()) == older


def untied_state(model: PreTrainedModel) -> dict[str, Tensor]:
    tied = "lm_head.weight" if model.config.tie_word_embeddings else None
    return {name: tensor for name, tensor in model.state_dict().items() if name != tied}


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 256, (PROMPT,), generator=torch.Generator().manual_seed(seed))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape == (PROMPT, VOCABULARY)
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def greedy(model: Model, prompt: Tensor) -> list[int]:
    """NEW_TOKENS tokens after `prompt`, each pass reading the keys and values of those before from a pool."""
    pool = KVPool(model.spec, PAGE_TOKENS, model.dtype, model.device, model.backend)
    found: list[int] = []
    part, stored = prompt, 0
    for _ in range(NEW_TOKENS):
        positions = torch.arange(stored, stored + len(part))
        step = Step(
            positions=positions,
            slots=positions,
            page_table=torch.zeros(1, 1, dtype=torch.int32),
            query_starts=torch.tensor([0, len(part)], dtype=torch.int32),
            lengths=torch.tensor([stored + len(part)], dtype=torch.int32),
            max_queries=len(part),
            max_length=stored + len(part),
        )
        logits = model.forward(part, step, pool, logits_at=torch.tensor([len(part) - 1]))
        stored += len(part)
        part = logits.argmax(-1)
        found.append(int(part))
    return found


# ---- what a spec says about a checkpoint


def named_shapes(model: spec.Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an unquantized checkpoint; fused ones are as long as their parts together."""
    shapes: dict[str, tuple[int, ...]] = {}
    for embedding in (model.embedding, model.positions):
        if embedding is not None:
            shapes[f"{embedding.key}.weight"] = (embedding.num_rows, embedding.width)
    for block in model.blocks:
        for norm in spec.block_norms(block):
            shapes |= norm_shapes(norm, block.attn)
        if isinstance(block.mlp, spec.SparseMoe):
            shapes[f"{block.mlp.router_key}.weight"] = (len(block.mlp.experts), model.hidden_size)
    shapes |= norm_shapes(model.norm)
    for linear in (*model.linears, model.head.linear):
        for name, part in linear_shapes(linear).items():
            shapes[name] = joined(shapes[name], part, linear.source) if name in shapes else part
    return shapes


def norm_shapes(norm: spec.Norm, attn: spec.Attention | None = None) -> dict[str, tuple[int, ...]]:
    shape: tuple[int, ...] = (norm.width,)
    if attn and isinstance(norm, spec.LayerNorm) and norm in (attn.q_norm, attn.k_norm):
        shape = (attn.num_heads if norm == attn.q_norm else attn.num_kv_heads, norm.width)
    has_bias = isinstance(norm, spec.LayerNorm) and norm.bias
    return {f"{norm.key}.weight": shape} | ({f"{norm.key}.bias": shape} if has_bias else {})


def linear_shapes(linear: spec.Linear) -> dict[str, tuple[int, ...]]:
    key, transposed = (linear.source.key, linear.source.transposed) if linear.source else (linear.key, False)
    shape = (linear.in_features, linear.out_features) if transposed else (linear.out_features, linear.in_features)
    return {f"{key}.weight": shape} | ({f"{key}.bias": (linear.out_features,)} if linear.bias else {})


def joined(whole: tuple[int, ...], part: tuple[int, ...], source: spec.Source | None) -> tuple[int, ...]:
    """Their shape one after another; two matrices under one name without a source would be a mistake of the spec."""
    assert source is not None
    axis = min(source.axis, len(part) - 1)
    assert whole[:axis] + whole[axis + 1 :] == part[:axis] + part[axis + 1 :]
    return (*whole[:axis], whole[axis] + part[axis], *whole[axis + 1 :])
