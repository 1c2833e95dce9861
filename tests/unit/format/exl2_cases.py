"""Random EXL2 matrices as Hypothesis strategies, and what they mean, element by element, in numpy."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from polybit.format.exl2 import WIDTHS, Exl2Tensor, Group, Layout, encode

_ANY_COLUMNS = st.integers(1, 70)


@dataclass(frozen=True)
class Case:
    """Everything that goes into one matrix; q is [K, N] in sorted rows."""

    layout: Layout
    q: torch.Tensor
    codes: torch.Tensor
    scale_max: torch.Tensor
    perm: torch.Tensor
    bias: torch.Tensor | None

    def encode(self) -> Exl2Tensor:
        return encode(self.q, self.codes, self.scale_max, self.layout, self.perm, self.bias)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Up to six groups of any widths and of 32, 64 or 96 rows, in an order that files may have."""
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=6))
    rows = draw(st.lists(st.sampled_from([32, 64, 96]), min_size=len(widths), max_size=len(widths)))
    return Layout(tuple(map(Group, sorted(widths, reverse=True), rows)))


@st.composite
def cases(draw: st.DrawFn, columns: st.SearchStrategy[int] = _ANY_COLUMNS) -> Case:
    """Scales reach down to binary16's subnormals; columns need not be a multiple of 32."""
    layout, num_columns = draw(layouts()), draw(columns)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    group_rows = [
        torch.randint(0, 2**group.bits, (group.rows, num_columns), generator=random) for group in layout.groups
    ]
    num_groups = len(layout.groups)
    scale_max = torch.rand(num_groups, generator=random) * 10.0 ** draw(st.integers(-6, 2))
    return Case(
        layout,
        q=torch.cat(group_rows),
        codes=torch.randint(0, 16, (num_groups, num_columns), generator=random),
        scale_max=scale_max.half(),
        perm=torch.randperm(layout.in_features, generator=random),
        bias=torch.randn(num_columns, generator=random).half() if draw(st.booleans()) else None,
    )


def model_of(tensor: Exl2Tensor, prescale: float = 1.0) -> np.ndarray:
    """[K, N] float16 straight from the definition: one weight at a time, Python integers for the bit streams."""
    words = tensor.q_weight.numpy().view(np.uint32)
    scale_words = tensor.q_scale.numpy().view(np.uint32)
    pairs = tensor.q_groups.numpy().view(np.uint16)
    num_columns = words.shape[1]
    weights = np.empty((tensor.in_features, num_columns), np.float16)
    input_of_row = {int(row): feature for feature, row in enumerate(tensor.q_invperm)}
    row = 0
    for group in range(len(pairs) // 2):
        bits, first = int(pairs[2 * group]), int(pairs[2 * group + 1])
        last = int(pairs[2 * group + 3]) if 2 * group + 3 < len(pairs) else len(words)
        unit = np.float16(tensor.q_scale_max.numpy()[group].astype(np.float32) * np.float32(prescale / 256))
        num_rows = (last - first) * 32 // bits
        for column in range(num_columns):
            stream = sum(int(word) << (32 * i) for i, word in enumerate(words[first:last, column]))
            code = int(scale_words[group, column // 8]) >> (4 * (column % 8)) & 15
            scale = np.float16((code + 1) ** 2) * unit
            for i in range(num_rows):
                q = stream >> (bits * i) & (2**bits - 1)
                weights[input_of_row[row + i], column] = np.float16(q - 2 ** (bits - 1)) * scale
        row += num_rows
    return weights
