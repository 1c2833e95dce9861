"""Model folders whose matrices are all EXL2, of every width in odd mixtures: rounded to nearest, nothing measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from polybit.format import exl2
from polybit.format.dense import read_dense
from polybit.format.exl2 import Exl2Tensor, Group, Layout
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model, vector_names
from polybit.quantizer.stored import attention_norms, head_weight

WIDTHS = (4, 6, 3, 8, 5, 2)
GROUP_BLOCKS = (2, 1, 3)  # of 32 rows
CODES = 16


def pack_model(folder: Path) -> Path:
    """Replace all matrices of an unquantized folder, the head too, and its weight files by one."""
    source = open_model(folder, LoadOptions(device="cpu"))
    tensors = {name: source.checkpoint.tensor(name).half() for name in vector_names(source.spec)}
    random = torch.Generator().manual_seed(0)
    for i, linear in enumerate(source.spec.linears):
        packed = pack_matrix(*read_dense(source.checkpoint, linear), mixture(linear.in_features, i), random)
        tensors |= exl2.to_tensors(linear.key, packed)
    head = source.spec.head.linear
    packed = pack_matrix(*head_weight(source), mixture(head.in_features, 1), random)
    tensors |= exl2.to_tensors(head.key, packed)
    for block in source.spec.blocks:
        for norms in attention_norms(source.checkpoint, block.attn):
            tensors |= norms
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def mixture(in_features: int, first: int) -> Layout:
    """Groups of changing sizes and widths; which come first depends on `first`."""
    groups, left, i = list[Group](), in_features // 32, first
    while left:
        size = min(left, GROUP_BLOCKS[i % len(GROUP_BLOCKS)])
        groups.append(Group(WIDTHS[i % len(WIDTHS)], 32 * size))
        left, i = left - size, i + 1
    return Layout(tuple(sorted(groups, key=lambda group: -group.bits)))


def pack_matrix(weight: Tensor, bias: Tensor | None, layout: Layout, random: torch.Generator) -> Exl2Tensor:
    """weight [N, K]; its rows are put into a random order first."""
    perm = torch.randperm(weight.shape[1], generator=random)
    parts = torch.split(weight.float().T[perm], [group.rows for group in layout.groups])
    rounded = [_round(part, group.bits) for part, group in zip(parts, layout.groups, strict=True)]
    q, codes, maxima = zip(*rounded, strict=True)
    return exl2.encode(torch.cat(q), torch.stack(codes), torch.stack(maxima).half(), layout, perm, bias)


def _round(w: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """One group, w [R, N] -> codes of its weights [R, N] and of its scales [N], and the largest scale."""
    zero = 1 << (bits - 1)
    wanted = w.abs().amax(0).clamp_min(1e-4) / max(1, zero - 1)
    codes = torch.ceil((wanted / wanted.max() * CODES**2).sqrt() - 1).clamp(0, CODES - 1)
    scales = (codes + 1).square() / CODES**2 * wanted.max()
    q = ((w / scales).round() + zero).clamp(0, 2 * zero - 1)
    return q.to(torch.uint8), codes.to(torch.uint8), wanted.max()


def matrices_of(model: Model) -> list[Any]:
    """Every matrix that a loaded model multiplies with, joined ones once, wherever its parts keep them."""
    return list(_matrices((model.stages, model.head), set()))


def _matrices(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen or isinstance(value, Tensor):
        return
    seen.add(id(value))
    if hasattr(value, "num_bytes"):
        yield value
        return
    if isinstance(value, tuple | list):
        inside = list(value)
    elif callable(value) and getattr(value, "__closure__", None):
        inside = [cell.cell_contents for cell in value.__closure__]
    elif type(value).__module__.startswith("polybit."):
        inside = list(getattr(value, "__dict__", {}).values())
    else:
        return
    for part in inside:
        yield from _matrices(part, seen)
