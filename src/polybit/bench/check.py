"""Products compared with their definition before anything is timed: a wrong kernel has no speed."""

from collections.abc import Collection, Hashable

import torch
from torch import Tensor

from polybit import spec
from polybit.bench.subject import Place, Stored, Subject
from polybit.errors import KernelError
from polybit.format import exl2, gptq
from polybit.format.exl2 import Exl2Tensor
from polybit.format.gptq import GptqTensor
from polybit.kernels.protocol import Matrix

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # relative Frobenius error
MOST_ROWS = 256  # beyond, products of more rows run the same code
COLUMN_STEP = 4096  # columns that are dequantized at once


def check_products(subject: Subject, num_rows: Collection[int]) -> int:
    """One matrix of each family, with each of these numbers of rows -> how many matrices. KernelError: one is wrong."""
    rows = sorted({min(count, MOST_ROWS) for count in num_rows})
    families = families_of(subject)
    for linear in families.values():
        check_product(subject, linear, rows)
    return len(families)


def families_of(subject: Subject) -> dict[Hashable, spec.Linear]:
    """The first matrix of each family."""
    found: dict[Hashable, spec.Linear] = {}
    for linear in (*subject.model.linears, subject.model.head.linear):
        found.setdefault(subject.family(linear), linear)
    return found


@torch.inference_mode()
def check_product(subject: Subject, linear: spec.Linear, num_rows: list[int]) -> None:
    place, stored = subject.place, subject.stored(linear)
    random = torch.Generator(place.device).manual_seed(0)
    shape = (num_rows[-1], linear.in_features)
    x = torch.randn(shape, generator=random, device=place.device).to(place.dtype)
    expected = product(x, stored, linear.prescale)
    matrix = _prepared(stored, linear.prescale, place)
    for count in num_rows:
        error = relative_error(place.backend.matmul(x[:count], matrix), expected[:count])
        if not error < TOLERANCES[place.dtype]:  # NaN is not
            raise KernelError(
                f"backend {place.backend.NAME}: the product of {count} rows with {linear.key} of {subject.name} has a "
                f"relative error of {error:.1e}, at most {TOLERANCES[place.dtype]:g} is right; no figures from wrong "
                "results: report this, and use --backend reference meanwhile"
            )


def product(x: Tensor, stored: Stored, prescale: float) -> Tensor:
    """x [T, K] -> [T, N] fp32 by the definition, some columns at a time."""
    width = stored.shape[0] if isinstance(stored, Tensor) else stored.out_features
    starts = range(0, width, COLUMN_STEP)
    parts = [x.float() @ _columns(stored, start, min(start + COLUMN_STEP, width), prescale) for start in starts]
    return torch.cat(parts, dim=1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    difference = actual.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


def _columns(stored: Stored, start: int, stop: int, prescale: float) -> Tensor:
    """[K, stop - start] fp32"""
    match stored:
        case Exl2Tensor():
            return exl2.dequantize(stored.columns(start, stop), prescale).float()
        case GptqTensor():
            return gptq.dequantize(stored.columns(start, stop), prescale).float()
        case _:
            return stored[start:stop].float().T * prescale


def _prepared(stored: Stored, prescale: float, place: Place) -> Matrix:
    """Packed, whichever way the model holds it: that is what has kernels."""
    match stored:
        case Exl2Tensor():
            return place.backend.prepare_exl2(stored, prescale, place.device, place.dtype, False)
        case GptqTensor():
            return place.backend.prepare_gptq(stored, prescale, place.device, place.dtype, False)
        case _:
            weight = stored.to(place.device, place.dtype)
            scaled = weight if prescale == 1.0 else weight * prescale
            return place.backend.prepare_dense(scaled, place.device, place.dtype)
