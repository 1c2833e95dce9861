"""Every backend's matrices can be moved: rebuilt over a copy of their tensors elsewhere, they multiply the same."""

import pytest
import torch

from polybit.format import exl2
from polybit.kernels.protocol import Backend
from polybit.model.offload import pack
from polybit.model.weights import Linear

K, N = 96, 64


def packed_matrix(random: torch.Generator) -> exl2.Exl2Tensor:
    layout = exl2.Layout((exl2.Group(5, 32), exl2.Group(3, 64)))
    q = torch.cat([torch.randint(0, 1 << g.bits, (g.rows, N), generator=random) for g in layout.groups])
    codes = torch.randint(0, 16, (2, N), generator=random)
    scale_max = torch.rand(2, generator=random) + 0.5
    return exl2.encode(q, codes, scale_max, layout, torch.randperm(K, generator=random))


def expected_kind(backend: Backend, dtype: torch.dtype, unpacked: bool) -> str:
    if unpacked:
        return "DenseMatrix"
    if backend.NAME == "cuda" and dtype != torch.float32:
        return "Streamed"
    return {"reference": "PackedMatrix", "cpu": "TiledMatrix"}.get(backend.NAME, "Exl2Matrix")


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_matrix_moved_to_other_memory_multiplies_the_same(
    backend: Backend, device: torch.device, dtype: torch.dtype, random: torch.Generator, unpacked: bool
) -> None:
    matrix = backend.prepare_exl2(packed_matrix(random), 1.0, device, dtype, unpacked)
    assert type(matrix).__name__ == expected_kind(backend, dtype, unpacked)
    bias = torch.randn(N, generator=random).to(device, dtype)
    linear, x = Linear(matrix, bias, N, backend), torch.randn(3, K, generator=random).to(device, dtype)
    expected = linear(x)
    parcel = pack({"linear": linear})
    place = torch.zeros(len(parcel.bytes) + 512, dtype=torch.uint8, device=device)
    moved = parcel.over(place)["linear"]
    place[: len(parcel.bytes)].copy_(parcel.bytes)
    assert torch.equal(moved(x), expected)
