"""Products compared with their definition before anything is timed: a wrong kernel has no speed."""

import math
from collections.abc import Collection, Hashable, Iterator

import torch
from torch import Tensor

from polybit import spec
from polybit.bench.subject import Place, Stored, Subject
from polybit.errors import KernelError
from polybit.format import exl2, gptq
from polybit.format.exl2 import Exl2Tensor
from polybit.format.gptq import GptqTensor
from polybit.kernels.protocol import Matrix

Group = tuple[spec.Linear, ...]  # of one input

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # relative Frobenius error
INTEGER_TOLERANCE = 5e-4  # of backend cpu's EXL2 products: weights unrounded after scaling, activations of 16 bits
MOST_ROWS = 256  # beyond, products of more rows run the same code
COLUMN_STEP = 4096  # columns that are dequantized at once


def check_products(subject: Subject, num_rows: Collection[int]) -> int:
    """Each kind of product once, with each of these numbers of rows -> how many kinds. KernelError: one is wrong."""
    rows = sorted({min(count, MOST_ROWS) for count in num_rows})
    kinds = products_of(subject)
    for linears in kinds.values():
        check_product(subject, linears, rows)
    return len(kinds)


def products_of(subject: Subject) -> dict[Hashable, Group]:
    """The first product of each kind: matrices that are taken together are one."""
    found: dict[Hashable, Group] = {}
    for group in _groups(subject.model):
        found.setdefault(tuple(map(subject.family, group)), group)
    return found


def _groups(model: spec.Model) -> Iterator[Group]:
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        yield from ((attn.q, attn.k, attn.v), (attn.o,))
        for part in mlp.experts if isinstance(mlp, spec.SparseMoe) else (mlp,):
            yield from (spec.mlp_inputs(part), (part.down,))
    yield (model.head.linear,)


@torch.inference_mode()
def check_product(subject: Subject, linears: Group, num_rows: list[int]) -> None:
    """Each matrix alone, with and without a residual, and all of them joined where the backend does that."""
    place, width = subject.place, linears[0].in_features
    x = _random(place, num_rows[-1], width)
    matrices, products, tolerances = list[Matrix](), list[Tensor](), list[float]()
    for linear in linears:
        stored = subject.stored(linear)
        matrices.append(_prepared(stored, linear.prescale, place))
        products.append(product(x, stored, linear.prescale))
        tolerances.append(_tolerance(place, stored))
    for linear, matrix, expected, tolerance in zip(linears, matrices, products, tolerances, strict=True):
        _compare(subject, linear.key, x, matrix, expected, num_rows, tolerance)
    whole = place.backend.join(matrices)
    if whole is not None:
        name, expected = " and ".join(each.key for each in linears), torch.cat(products, dim=1)
        _compare(subject, name, x, whole, expected, num_rows, max(tolerances))


def _tolerance(place: Place, stored: Stored) -> float:
    is_integer = place.backend.NAME == "cpu" and isinstance(stored, Exl2Tensor)
    allowed = TOLERANCES[place.dtype]
    return max(allowed, INTEGER_TOLERANCE) if is_integer else allowed


def _compare(
    subject: Subject, name: str, x: Tensor, matrix: Matrix, expected: Tensor, num_rows: list[int], tolerance: float
) -> None:
    backend = subject.place.backend
    residual = _random(subject.place, *expected.shape)
    for count in num_rows:
        alone = backend.matmul(x[:count], matrix)
        added = backend.matmul(x[:count], matrix, residual[:count])
        error = max(
            relative_error(alone, expected[:count]),
            relative_error(added, expected[:count] + residual[:count].float()),
            key=lambda value: math.inf if math.isnan(value) else value,
        )
        if not error < tolerance:
            raise KernelError(
                f"backend {backend.NAME}: the product of {count} rows with {name} of {subject.name} has a relative "
                f"error of {error:.1e}, at most {tolerance:g} is right; no figures from wrong results: report this, "
                "and use --backend reference meanwhile"
            )


def _random(place: Place, *shape: int) -> Tensor:
    random = torch.Generator(place.device).manual_seed(0)
    return torch.randn(shape, generator=random, device=place.device).to(place.dtype)


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
