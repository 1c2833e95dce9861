"""The check before the figures: it passes right products, and a slightly wrong one stops everything."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from polybit.bench.check import check_products, product, products_of
from polybit.bench.subject import FolderSubject, Request, Subject, SyntheticSubject, open_subject
from polybit.errors import KernelError
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels import reference
from polybit.kernels.protocol import Backend, Matrix
from polybit.model.options import LoadOptions
from random_model import write_random_model
from unit.bench.subjects import synthetic

Damage = Callable[[Tensor], Tensor]


def broken(damage: Damage, rows: int | None = None) -> Backend:
    """The reference, but products (of `rows` rows only) come out damaged."""

    def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
        y = reference.matmul(x, matrix, residual)
        return damage(y) if rows in (None, len(x)) else y

    return altered(matmul=matmul)


def altered(**functions: Callable[..., object]) -> Backend:
    parts = {name: getattr(reference, name) for name in reference.__all__}
    return cast(Backend, SimpleNamespace(**(parts | functions | {"NAME": "broken"})))


def with_backend(subject: Subject, backend: Backend) -> Subject:
    assert isinstance(subject, SyntheticSubject | FolderSubject)
    return replace(subject, place=replace(subject.place, backend=backend))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_right_products_pass(tmp_path: Path, dtype: str) -> None:
    subject = synthetic(tmp_path, bits=3.5, dtype=dtype)
    assert check_products(subject, {1, 8, 300}) == len(products_of(subject))


@pytest.mark.parametrize(
    "damage",
    [
        lambda y: y * 1.003,
        lambda y: y.roll(1, dims=-1),
        lambda y: torch.cat([y[:, :-1], y[:, -1:] * float("nan")], dim=-1),
        lambda y: torch.zeros_like(y),
    ],
    ids=["scale", "columns", "nan", "nothing"],
)
def test_wrong_products_are_refused(tmp_path: Path, damage: Damage) -> None:
    subject = with_backend(synthetic(tmp_path, dtype="float16"), broken(damage))
    with pytest.raises(KernelError, match="no figures from wrong results"):
        check_products(subject, {1})


def test_only_integer_products_are_given_room(tmp_path: Path) -> None:
    """In fp32; the cpu backend's own are off by 2e-4, because they do not round weights after scaling."""
    check_products(synthetic(tmp_path, dtype="float32", backend="cpu"), {1, 8})
    subject = with_backend(synthetic(tmp_path, dtype="float32"), broken(lambda y: y * 1.0001))
    with pytest.raises(KernelError, match="at most 1e-05 is right"):
        check_products(subject, {1})


def test_every_number_of_rows_is_checked(tmp_path: Path) -> None:
    subject = with_backend(synthetic(tmp_path), broken(lambda y: y * 2, rows=8))
    check_products(subject, {1, 4})
    with pytest.raises(KernelError, match="the product of 8 rows"):
        check_products(subject, {1, 4, 8})


def test_a_wrong_residual_is_refused(tmp_path: Path) -> None:
    def matmul(x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
        return reference.matmul(x, matrix)

    with pytest.raises(KernelError, match="relative error"):
        check_products(with_backend(synthetic(tmp_path), altered(matmul=matmul)), {1})


def test_joined_matrices_are_checked_as_the_model_uses_them(tmp_path: Path) -> None:
    def join(matrices: Sequence[Matrix]) -> Matrix:
        dense = [reference.dequantize(matrix).T for matrix in reversed(matrices)]  # in the wrong order
        return reference.prepare_dense(torch.cat(dense), torch.device("cpu"), torch.float32)

    with pytest.raises(KernelError, match=r"q_proj and .*k_proj and .*v_proj"):
        check_products(with_backend(synthetic(tmp_path), altered(join=join)), {1})


def test_each_set_of_layouts_and_widths_is_a_kind_of_its_own(tmp_path: Path) -> None:
    subject = synthetic(tmp_path)
    kinds = set[object]()
    for block in subject.model.blocks:
        attn, (gate, up, down) = block.attn, block.mlp.linears
        for group in ((attn.q, attn.k, attn.v), (attn.o,), (gate, up), (down,)):
            kinds.add(tuple((subject.stored(node).layout, node.out_features) for node in group))
    assert len(products_of(subject)) == len(kinds) + 1  # the head


def test_the_product_is_that_of_the_definition(tmp_path: Path) -> None:
    subject = synthetic(tmp_path)
    stored = subject.stored(subject.model.linears[0])
    assert isinstance(stored, Exl2Tensor)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(product(x, stored, 2.0), x @ exl2.dequantize(stored, 2.0).float(), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_folders_are_checked_too(tmp_path: Path, tied: bool) -> None:
    folder = write_random_model(tmp_path / "model", {"tie_word_embeddings": tied, "vocab_size": 160})
    subject = open_subject(Request(str(folder), None, 6, 0, LoadOptions(device="cpu")))
    assert check_products(subject, {1, 2}) == 5  # q with k and v; o; gate with up; down; head
    with pytest.raises(KernelError):
        check_products(with_backend(subject, broken(lambda y: y * 1.01)), {1})
