"""Passages sampled with a growing store, against the whole passage run at once."""

import pytest
import torch

from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows
from polybit.quantizer import own_text
from polybit.quantizer.own_text import write_text

from .conftest import Make


def ignore(done: int, total: int) -> None:
    """Progress that nobody follows."""


STARTS = torch.tensor([5, 17, 200])


@pytest.fixture(scope="module")
def model(make_model: Make) -> Model:
    return load(open_model(make_model(seed=2), LoadOptions(device="cpu")))


@pytest.mark.parametrize("bos", [None, 3])
def test_each_token_is_drawn_from_the_prediction_after_those_before(
    bos: int | None, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the likeliest token drawn at every step, the passage agrees with a plain pass over all of it."""
    monkeypatch.setattr(own_text, "_sample", lambda logits, draw: logits.argmax(-1))
    passages = write_text(model, STARTS, 12, bos, ignore)
    assert passages.shape == (3, 12)
    assert torch.equal(passages[:, 0], STARTS)
    for passage in passages:
        whole = passage if bos is None else torch.cat([torch.tensor([bos]), passage])
        logits = model.forward(whole, *whole_rows(1, len(whole), torch.device("cpu")))
        assert torch.equal(logits.argmax(-1)[-12:-1], passage[1:])


def test_the_same_at_every_run(model: Model) -> None:
    first = write_text(model, STARTS, 20, None, ignore)
    assert torch.equal(first, write_text(model, STARTS, 20, None, ignore))
    assert len(first.unique(dim=0)) == 3


@pytest.mark.parametrize("bos", [None, 3])
def test_every_step_of_every_portion_is_told(bos: int | None, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "AT_ONCE", 2)
    told = list[tuple[int, int]]()
    passages = write_text(model, STARTS, 20, bos, lambda done, total: told.append((done, total)))
    assert passages.shape == (3, 20)
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {total for _, total in told} == {len(told)}
