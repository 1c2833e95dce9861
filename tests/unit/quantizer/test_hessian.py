import pytest
import torch

from polybit.errors import CalibrationError
from polybit.quantizer import hessian
from polybit.quantizer.hessian import Hessian, factorize, shrink, weigh_rows


def test_mean_is_over_rows_not_tokens() -> None:
    found, x = Hessian(2, torch.device("cpu")), torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    found.add(x[:2])
    found.add(x[2:])
    assert torch.equal(found.mean(num_rows=2), torch.tensor([[11.0, 14.0], [14.0, 21.0]]) / 2)


def test_it_can_hold_moments_of_two() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, weights = (torch.randn(shape, generator=generator) for shape in ((8, 3), (8, 3), (8,)))
    found = Hessian(3, torch.device("cpu"), weights)
    found.add(x[:5], y[:5])
    found.add(x[5:], y[5:])
    torch.testing.assert_close(found.mean(num_rows=2), torch.einsum("t,ti,tj->ij", weights, x, y) / 2)


def test_without_tokens_it_is_the_identity() -> None:
    found = Hessian(3, torch.device("cpu"))
    assert torch.equal(found.mean(num_rows=2), torch.eye(3))


def test_shrinking_keeps_scales_and_reduces_correlations() -> None:
    h = torch.tensor([[2.0, 1.0, -1.0], [1.0, 3.0, 0.5], [-1.0, 0.5, 4.0]])
    expected = torch.tensor([[2.0, 0.7, -0.7], [0.7, 3.0, 0.35], [-0.7, 0.35, 4.0]])
    torch.testing.assert_close(shrink(h, 0.3), expected)
    assert torch.equal(shrink(h, 0.0), h)


def test_order_is_by_descending_diagonal() -> None:
    h = torch.diag(torch.tensor([1.0, 3.0, 2.0, 3.0]))
    assert factorize(h, 0.12, "x").perm.tolist() == [1, 3, 2, 0]


def test_upper_factors_the_damped_inverse() -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    h = x.T @ x
    factor = factorize(h, 0.12, "x")
    damped = h[factor.perm][:, factor.perm] + 0.12 * h.diagonal().mean() * torch.eye(16)
    torch.testing.assert_close(factor.upper.T @ factor.upper @ damped, torch.eye(16), rtol=0, atol=1e-4)
    assert torch.equal(factor.upper, factor.upper.triu())


def test_it_solves_with_the_damped_h() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator) for shape in ((64, 16), (16, 5)))
    h = x.T @ x
    damped = h + 0.12 * h.diagonal().mean() * torch.eye(16)
    torch.testing.assert_close(damped @ factorize(h, 0.12, "x").solve(y), y, rtol=0, atol=1e-4)


def test_damping_accumulates_until_h_is_positive_definite() -> None:
    """-0.5 on a diagonal of mean 1.9: each attempt adds 0.228, so the third is the first to work."""
    h = torch.diag(torch.tensor([2.5, 2.5, 2.5, 2.5, -0.5]))
    step = 0.12 * 1.9
    damped = torch.diag(torch.tensor([2.5, 2.5, 2.5, 2.5, -0.5])) + 3 * step * torch.eye(5)
    torch.testing.assert_close(factorize(h, 0.12, "x").upper, damped.rsqrt().nan_to_num(posinf=0).diag().diag())


def test_an_indefinite_h_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match=r"^layers\.3\.q: "):
        factorize(torch.diag(torch.tensor([1.0, -9.0])), 0.12, "layers.3.q")


def test_nan_is_refused() -> None:
    with pytest.raises(CalibrationError):
        factorize(torch.full((4, 4), float("nan")), 0.12, "x")


@pytest.mark.parametrize("damping", [0.03, 1e-4])
def test_both_ways_to_a_factor_are_as_accurate(damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An H of half its rank with features of very unequal sizes, against fp64; blocks of odd sizes."""
    monkeypatch.setattr(hessian, "SOLVED_AT_ONCE", 16)
    make = torch.Generator().manual_seed(0)
    x = torch.randn(75, 150, generator=make) * (2 * torch.randn(150, generator=make)).exp()
    h = x.T @ x / len(x)
    perm = h.diagonal().argsort(descending=True, stable=True)
    damped = hessian._damped(h, perm, damping, 1).double()
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    for way in (hessian._by_inverting, hessian._by_flipping):
        found = way(h, perm, damping, 1)
        assert found is not None
        assert torch.equal(found, found.triu())
        assert float((found.double() - expected).norm() / expected.norm()) < 1e-5
    pivots = hessian._pivots(h, perm, damping, 1)
    assert pivots is not None
    torch.testing.assert_close(pivots.double(), expected.diagonal() ** -2, rtol=1e-3, atol=0)
    for way in (hessian._by_inverting, hessian._by_flipping, hessian._pivots):
        assert way(-h, perm, damping, 1) is None


@pytest.mark.gpu
def test_a_large_factor_on_the_gpu() -> None:
    make = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1500, 3000, generator=make, device="cuda")
    h = x.T @ x / len(x)
    factor = factorize(h, 0.03, "x")
    damped = hessian._damped(h, factor.perm, 0.03, 1).double()
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert float((factor.upper.double() - expected).norm() / expected.norm()) < 1e-4
    rows = weigh_rows(h, 0.03, "x")
    assert torch.equal(rows.perm, factor.perm)
    torch.testing.assert_close(rows.weights, factor.row_weights, rtol=1e-3, atol=0)
