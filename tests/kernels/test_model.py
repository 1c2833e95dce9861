"""A whole model through each backend: what the modules hand to the operations, and in which order."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import assert_close
from packed_model import matrices_of, pack_model
from polybit import generator
from polybit.cache import PAGE_TOKENS, KVPool
from polybit.kernels.protocol import Backend
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import Step, whole_rows
from random_model import write_random_model
from unit.text.folders import byte_level


def test_a_model_agrees_with_the_reference(backend, device, tmp_path) -> None:
    folder = write_random_model(tmp_path, {"head_dim": 24, "intermediate_size": 100, "attention_bias": True})
    tokens = torch.randint(0, 96, (2 * 9,), generator=torch.Generator().manual_seed(0))
    logits = []
    for name, where in (("reference", "cpu"), (backend.NAME, str(device))):
        model = load(open_model(folder, LoadOptions(device=where, dtype="float32", backend=name)))
        logits.append(model.forward(tokens.to(where), *whole_rows(2, 9, model.device)))
    assert_close(logits[1], logits[0], "model")


QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 24, "attention_bias": False}
COHERE = {
    "architectures": ["CohereForCausalLM"],
    "model_type": "cohere",
    "use_qk_norm": True,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.5,
    "tie_word_embeddings": True,
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["q4", "q6"])
def test_a_quantized_cache_on_a_card_gives_the_references_text(tmp_path, name) -> None:
    """Through captured steps, with a prompt in chunks."""
    folder = byte_level(write_random_model(tmp_path, {"vocab_size": 272, "head_dim": 64}))
    options = {"dtype": "float32", "cache": name}
    texts = [
        generator.load(folder, device=device, **options).generate("some prompt" * 30, temperature=0, max_tokens=24).text
        for device in ("cpu", "cuda")
    ]
    assert texts[0] == texts[1]


def by_head(folder: Path, differing: float) -> Path:
    """The norms of heads once for every head, as EXL2 files hold them; `differing`: by how much from head to head."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, num_heads in (("q_norm", 4), ("k_norm", 2)):
        for key in [key for key in tensors if key.endswith(f"{name}.weight")]:
            factors = 1 + differing * torch.arange(num_heads)[:, None]
            tensors[key] = (tensors[key] * factors).contiguous()
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize("config", [{}, QWEN3, COHERE], ids=["no norms", "norms of heads", "other norms of heads"])
def test_one_token_at_a_time_agrees_with_all_at_once(backend, device, tmp_path, config) -> None:
    compare_one_token_with_all(backend, device, write_random_model(tmp_path, config))


@pytest.mark.parametrize("differing", [0.0, 0.5])
def test_norms_that_a_file_holds_for_every_head(backend, device, tmp_path, differing) -> None:
    compare_one_token_with_all(backend, device, by_head(write_random_model(tmp_path, QWEN3), differing))


def compare_one_token_with_all(backend: Backend, device: torch.device, folder: Path) -> None:
    options = LoadOptions(device=str(device), dtype="float32", backend=backend.NAME)
    model = load(open_model(folder, options))
    texts = torch.randint(0, 96, (2, 5), generator=torch.Generator().manual_seed(0)).to(device)
    pool = KVPool(model.spec, 2 * PAGE_TOKENS, model.dtype, device, backend)
    first_slots = torch.tensor([0, PAGE_TOKENS], device=device)
    found = []
    for position in range(texts.shape[1]):
        step = Step(
            positions=torch.full((2,), position, device=device),
            slots=first_slots + position,
            page_table=torch.tensor([[0], [1]], dtype=torch.int32, device=device),
            query_starts=torch.tensor([0, 1, 2], dtype=torch.int32, device=device),
            lengths=torch.full((2,), position + 1, dtype=torch.int32, device=device),
            max_queries=1,
            max_length=position + 1,
        )
        found.append(model.forward(texts[:, position].contiguous(), step, pool))
    expected = model.forward(texts.flatten(), *whole_rows(2, texts.shape[1], device))
    assert_close(torch.stack(found, 1).flatten(0, 1), expected, "model")


def test_a_packed_model_agrees_with_the_reference(backend, device, tmp_path) -> None:
    """In half precision, for which backends have kernels of their own; passes of few rows and of many."""
    folder = pack_model(write_random_model(tmp_path, {"head_dim": 24, "intermediate_size": 160, "vocab_size": 160}))
    for rows, length in ((1, 1), (2, 9), (5, 20)):
        tokens, logits = torch.arange(rows * length), []
        for name, where, dtype in (("reference", "cpu", "float32"), (backend.NAME, str(device), "float16")):
            options = LoadOptions(device=where, dtype=dtype, backend=name, unpacked=False)
            model = load(open_model(folder, options))
            logits.append(model.forward(tokens.to(where), *whole_rows(rows, length, model.device)))
        assert_close(logits[1].half(), logits[0], "model")
    kinds = {type(matrix).__name__ for matrix in matrices_of(model)}
    own = {"reference": "PackedMatrix", "cpu": "TiledMatrix", "triton": "Exl2Matrix", "cuda": "Streamed"}
    assert kinds == {own[backend.NAME]}


@pytest.mark.gpu
@pytest.mark.parametrize(("packed", "dtype"), [(False, "float32"), (True, "float16")], ids=["plain", "packed"])
def test_a_captured_step_is_replayed_at_other_lengths(tmp_path, packed, dtype) -> None:
    """Nothing of a decode step but its tensors' contents may change from token to token."""
    folder = write_random_model(tmp_path)
    options = LoadOptions(device="cuda", dtype=dtype, unpacked=False)
    model = load(open_model(pack_model(folder) if packed else folder, options))
    model.stages[0].ropes.reserve(PAGE_TOKENS)
    pool = KVPool(model.spec, 2 * PAGE_TOKENS, model.dtype, model.device, model.backend)
    texts = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0)).to(model.device)
    tokens, first_slots = texts[:, 0].clone(), torch.tensor([0, PAGE_TOKENS], device=model.device)
    step = Step(
        positions=torch.zeros(2, dtype=torch.int64, device=model.device),
        slots=first_slots.clone(),
        page_table=torch.tensor([[0], [1]], dtype=torch.int32, device=model.device),
        query_starts=torch.tensor([0, 1, 2], dtype=torch.int32, device=model.device),
        lengths=torch.ones(2, dtype=torch.int32, device=model.device),
        max_queries=1,
        max_length=PAGE_TOKENS,
    )
    model.forward(tokens, step, pool)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model.forward(tokens, step, pool)
    found = []
    for position in range(texts.shape[1]):
        tokens.copy_(texts[:, position])
        step.positions.fill_(position)
        step.slots.copy_(first_slots + position)
        step.lengths.fill_(position + 1)
        graph.replay()
        found.append(logits.clone())
    expected = model.forward(texts.flatten(), *whole_rows(2, texts.shape[1], model.device))
    assert_close(torch.stack(found, 1).flatten(0, 1).to(model.dtype), expected, "model")


def test_a_pass_that_asks_for_no_logits(backend, device, tmp_path) -> None:
    """A long prompt in parts: only its last part has a token to predict."""
    folder = write_random_model(tmp_path)
    model = load(open_model(folder, LoadOptions(device=str(device), dtype="float32", backend=backend.NAME)))
    none = torch.empty(0, dtype=torch.int64, device=device)
    logits = model.forward(torch.arange(5, device=device), *whole_rows(1, 5, model.device), logits_at=none)
    assert logits.shape == (0, 96)
