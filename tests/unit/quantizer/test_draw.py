"""Draws against the distribution they are of."""

import torch

from polybit.quantizer.draw import draw


def test_tokens_come_as_often_as_they_are_likely() -> None:
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0, 4.0, 0.0])  # of any sum
    drawn = draw(weights.expand(40_000, -1), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    torch.testing.assert_close(shares, weights / 8, rtol=0, atol=0.01)
    assert (shares[weights == 0] == 0).all()


def test_each_row_is_drawn_from_its_own() -> None:
    drawn = draw(torch.eye(50)[torch.arange(200) % 50], torch.Generator().manual_seed(1))
    assert drawn.tolist() == [i % 50 for i in range(200)]
