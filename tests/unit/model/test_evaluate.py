"""Evaluation against the definitions written out, and against what must hold of any model."""

import math
from pathlib import Path

import pytest
import torch

from polybit.errors import RequestError
from polybit.model import evaluate
from polybit.model.evaluate import Score, chunks, cut_windows, divergence, log_probabilities, standard_error
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from random_model import write_random_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folder = tmp_path_factory.mktemp("models")
    sources = [open_model(write_random_model(folder / str(seed), seed=seed), LoadOptions("cpu")) for seed in (0, 1)]
    return load(sources[0]), load(sources[1])


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(96, (3, 17), generator=torch.Generator().manual_seed(5))


def test_windows_follow_each_other_and_drop_the_rest() -> None:
    assert cut_windows(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut_windows(torch.arange(11), 4, rows=1).tolist() == [[0, 1, 2, 3]]
    assert cut_windows(torch.arange(15), 4, rows=1, skip=1).tolist() == [[4, 5, 6, 7]]
    assert cut_windows(torch.arange(15), 4, skip=1).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_bos_token_takes_the_place_of_a_text_token_and_no_text_is_skipped() -> None:
    assert cut_windows(torch.arange(10, 17), 4, bos=1).tolist() == [[1, 10, 11, 12], [1, 13, 14, 15]]


@pytest.mark.parametrize(("length", "rows", "skip"), [(12, None, 0), (4, 3, 0), (1, None, 0), (4, 1, 2), (4, None, 2)])
def test_too_little_text_is_refused(length: int, rows: int | None, skip: int) -> None:
    with pytest.raises(RequestError, match="tokens"):
        cut_windows(torch.arange(11), length, rows, skip=skip)


def test_the_perplexity_of_garbage_is_a_number_too() -> None:
    assert 1e300 < evaluate.combine([evaluate.WindowScore(1, 1e6, 0.0, 0)], compared=False).perplexity < math.inf
    assert math.isnan(evaluate.combine([evaluate.WindowScore(1, math.nan, 0.0, 0)], compared=False).perplexity)


def test_perplexity_is_the_exponential_of_the_mean_negative_log_likelihood(
    models: tuple[Model, Model], windows: torch.Tensor
) -> None:
    model = models[0]
    losses = []
    for window in windows:
        probabilities = evaluate.predictions(model, window).double().softmax(-1)
        losses += [-math.log(probabilities[i, int(window[i + 1])]) for i in range(len(window) - 1)]
    score = evaluate.evaluate(model, windows)
    assert score.tokens == len(losses) == 48
    assert score.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-9)
    assert (score.kl, score.kl_error, score.top1) == (None, None, None)


def test_a_model_agrees_with_itself(models: tuple[Model, Model], windows: torch.Tensor) -> None:
    score = evaluate.evaluate(models[0], windows, models[0])
    assert score.kl == pytest.approx(0, abs=1e-12)
    assert score.top1 == 1.0


def test_divergence_from_another_model_is_the_definition(models: tuple[Model, Model], windows: torch.Tensor) -> None:
    p, q = (torch.cat([evaluate.predictions(m, w) for w in windows]).double().softmax(-1) for m in reversed(models))
    score = evaluate.evaluate(models[0], windows, models[1])
    assert score.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-9)
    assert score.top1 == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert score.kl_error is not None
    assert 0 < score.kl_error < score.kl


def test_memory_bounded_chunks_change_nothing(
    models: tuple[Model, Model], windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate.evaluate(models[0], windows, models[1])
    monkeypatch.setattr(evaluate, "CHUNK_ELEMENTS", 96 * 5)
    assert astuple(evaluate.evaluate(models[0], windows, models[1])) == pytest.approx(astuple(whole), rel=1e-12)


def test_progress_counts_windows(models: tuple[Model, Model], windows: torch.Tensor) -> None:
    seen: list[tuple[int, int]] = []
    evaluate.evaluate(models[0], windows, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_models_of_different_vocabularies_do_not_compare(
    models: tuple[Model, Model], windows: torch.Tensor, tmp_path: Path
) -> None:
    other = load(open_model(write_random_model(tmp_path / "other", {"vocab_size": 128}), LoadOptions("cpu")))
    with pytest.raises(RequestError, match="predicts 96 tokens and the reference 128"):
        evaluate.evaluate(models[0], windows, other)


def test_windows_beyond_a_models_context_or_vocabulary_are_refused(
    models: tuple[Model, Model], windows: torch.Tensor, tmp_path: Path
) -> None:
    short = load(open_model(write_random_model(tmp_path / "short"), LoadOptions("cpu", max_seq_len=8)))
    with pytest.raises(RequestError, match=f"windows of {windows.shape[1]} tokens are longer than the 8"):
        evaluate.evaluate(models[0], windows, short)
    with pytest.raises(RequestError, match="holds token 96, but the last of this LlamaForCausalLM is 95"):
        evaluate.evaluate(models[0], torch.tensor([[3, 96]]))


def test_a_token_that_the_reference_rules_out_adds_nothing() -> None:
    log_p = log_probabilities(torch.tensor([[0.0, 0.0, -torch.inf]]))
    log_q = log_probabilities(torch.tensor([[0.0, 0.0, 0.0]]))
    assert divergence(log_p, log_q).item() == pytest.approx(math.log(1.5))


def test_chunks_cover_every_row_once() -> None:
    rows = list(range(10))
    assert [row for part in chunks(10, evaluate.CHUNK_ELEMENTS // 3) for row in rows[part]] == rows
    assert len(list(chunks(10, evaluate.CHUNK_ELEMENTS * 2))) == 10


def test_standard_error_of_the_mean() -> None:
    assert standard_error([1.0]) is None
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)


def astuple(score: Score) -> tuple[float | None, ...]:
    return (score.perplexity, score.kl, score.kl_error, score.top1)
