"""The figures: what they are made of, and what is refused or left out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polybit.bench import measure as module
from polybit.bench import passes
from polybit.bench.check import check_products, products_of
from polybit.bench.measure import Wanted, decode_row, measure, prefill_row
from polybit.bench.passes import Batch
from polybit.bench.subject import Request, open_subject
from polybit.bench.work import operations, weight_bytes
from polybit.errors import KernelError, RequestError
from polybit.model.options import LoadOptions
from polybit.modules.step import whole_rows
from random_model import write_random_model
from unit.bench.subjects import hurry, synthetic, write_exl2_folder

LITTLE = Wanted(batches=(1, 2), contexts=(5,), prompts=(7,))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


# Of logits around 1. Integer products round activations to 16 bits, so what comes apart by a rounding moves further.
CLOSE = {"reference": 1e-4, "cpu": 1e-3}


@pytest.mark.parametrize("backend", CLOSE)
def test_a_prompt_goes_through_the_model_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    model = synthetic(tmp_path, backend=backend).build(None)
    tokens = torch.randint(0, 96, (3, 20), generator=torch.Generator().manual_seed(0))  # as Batch draws them
    expected = model.forward(tokens.flatten(), *whole_rows(3, 20, model.device)).view(3, 20, -1)[:, -1]
    assert torch.allclose(Batch(model, 3, 20).step(), expected, atol=CLOSE[backend])
    monkeypatch.setattr(passes, "CHUNK_TOKENS", 6)
    assert torch.allclose(Batch(model, 3, 20).step(), expected, atol=CLOSE[backend])


def test_steps_follow_each_other_and_again_starts_over(tmp_path: Path) -> None:
    model = synthetic(tmp_path).build(None)
    batch = Batch(model, 2, 9)
    first = batch.step()
    second = batch.step()
    assert first.shape == second.shape == (2, 96)
    assert not torch.equal(first, second)
    assert torch.equal(batch.again(), first)
    assert torch.equal(batch.step(), second)


def test_filled_sequences_decode_one_token(tmp_path: Path) -> None:
    model = synthetic(tmp_path).build(None)
    seen: list[tuple[int, list[int]]] = []
    forward = model.forward

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def forward(self, tokens: torch.Tensor, step: object, *others: object) -> torch.Tensor:
            seen.append((len(tokens), step.lengths.tolist()))
            return forward(tokens, step, *others)

    batch = Batch(Watched(), 3, 301)
    batch.fill()
    assert batch.step().isfinite().all()
    batch.again()
    assert seen == [(3, [301] * 3)] * 2


def test_rows_are_speeds_and_shares_of_the_ceilings(tmp_path: Path) -> None:
    subject = synthetic(tmp_path)
    model = subject.build(None)
    row = decode_row(subject, model, read=10.0, batch=2, context=5)
    needed = weight_bytes(model.spec, subject.stored_bits, 2) + 2 * 5 * 2 * 2 * 64 * 4
    assert (row.batch, row.context) == (2, 5)
    assert row.tok_per_s == pytest.approx(2 / (row.ms / 1e3))
    assert row.fraction == pytest.approx(needed / (row.ms / 1e3) / 10e9)
    prompt = prefill_row(model, multiplied=0.5, length=7)
    assert prompt.tok_per_s == pytest.approx(7 / (prompt.ms / 1e3))
    assert prompt.fraction == pytest.approx(operations(model.spec, 7) / (prompt.ms / 1e3) / 0.5e12)


def test_a_folder_is_measured_like_a_synthetic_model(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    report = measure(open_subject(Request(str(folder), None, 6, 0, LoadOptions(device="cpu"))), LITTLE)
    assert (report.model, report.bpw, report.vram) == ("model", 16.0, None)
    assert [(row.batch, row.context) for row in (*report.decode, *report.prefill)] == [(1, 5), (2, 5), (1, 7)]


def test_logits_that_are_not_finite_stop_it(tmp_path: Path) -> None:
    subject = synthetic(tmp_path)
    model = replace(subject.build(None), head=lambda x: torch.full((len(x), 96), float("inf")))
    with pytest.raises(KernelError, match="not finite"):
        decode_row(subject, model, read=1.0, batch=1, context=5)


def test_contexts_beyond_the_model_are_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a pass over 513 tokens is longer than the 512 that small@4 reaches"):
        measure(synthetic(tmp_path), replace(LITTLE, contexts=(512,)))


def test_what_does_not_fit_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subject = synthetic(tmp_path)
    monkeypatch.setattr(passes, "free_bytes", lambda device: 300 * 2 * 2 * 64 * 4)  # one page of one sequence
    report = measure(subject, LITTLE)
    assert [row.batch for row in report.decode] == [1]
    assert "left out: decoding 2 after 5 tokens (keys and values need" in caplog.text


def test_a_wrong_kernel_stops_it_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*others: object) -> int:
        raise KernelError("wrong")

    monkeypatch.setattr(module, "check_products", wrong)
    monkeypatch.setattr(module, "decode_rows", lambda *others: pytest.fail("timed"))
    with pytest.raises(KernelError, match="wrong"):
        measure(synthetic(tmp_path), LITTLE)


def test_a_seed_gives_the_same_model(tmp_path: Path) -> None:
    first, second = (synthetic(tmp_path, seed=3).build(None) for _ in range(2))
    other = synthetic(tmp_path, seed=4).build(None)
    logits = [Batch(model, 1, 9).step() for model in (first, second, other)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_a_synthetic_model_is_what_a_file_of_it_would_be(tmp_path: Path) -> None:
    subject = synthetic(tmp_path)
    folder = write_exl2_folder(tmp_path / "model", subject)
    stored = open_subject(Request(str(folder), None, 6, 0, LoadOptions(device="cpu", unpacked=False)))
    linears = (*subject.model.linears, subject.model.head.linear)
    assert [stored.stored_bits(node) for node in linears] == [subject.stored_bits(node) for node in linears]
    assert len(products_of(stored)) == check_products(stored, {1}) == len(products_of(subject))
    logits = [Batch(each.build(None), 1, 9).step() for each in (subject, stored)]
    assert torch.equal(*logits)
