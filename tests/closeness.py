"""One way to compare tensors, one table of tolerances."""

import torch
from torch import Tensor

# Relative Frobenius error allowed by op, for fp32 and fp16 activations. Ops that are missing take "elementwise".
TOLERANCES: dict[str, dict[torch.dtype, float]] = {
    "elementwise": {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    "attention": {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2},
    "model": {torch.float32: 1e-5, torch.float16: 5e-3},
    "matmul": {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2},
    # Of weights that are not rounded to fp16 after scaling, as the format would, and activations of 16 bits.
    "integer matmul": {torch.float32: 3e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2},
    "integer matmul, weights unrounded": {torch.float32: 5e-5},
}
WORST_ELEMENT = 20.0  # times the tolerance, relative to the largest element expected


def tolerance(op: str, dtype: torch.dtype) -> float:
    return TOLERANCES.get(op, TOLERANCES["elementwise"])[dtype]


def assert_close(actual: Tensor, expected: Tensor, op: str = "elementwise") -> None:
    """Relative Frobenius error and worst element against `expected`, which is computed in float64."""
    assert actual.shape == expected.shape, f"{op}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    allowed = tolerance(op, actual.dtype)
    difference = actual.double().cpu() - expected.double().cpu()
    error = relative_error(actual, expected)
    worst = (difference.abs().max() / expected.double().abs().max().clamp_min(1e-30)).item()
    assert error <= allowed, f"{op}: relative error {error:.2e}, at most {allowed:.0e} allowed"
    assert worst <= WORST_ELEMENT * allowed, f"{op}: worst element off by {worst:.2e} of the largest"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius."""
    difference = actual.double().cpu() - expected.double().cpu()
    return (difference.norm() / expected.double().norm().clamp_min(1e-30)).item()
