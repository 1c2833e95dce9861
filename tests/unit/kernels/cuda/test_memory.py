"""What the CUDA backend says that it takes of a card is what its parts take, on any card."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.format.exl2 import Group, Layout, storage_bits
from polybit.kernels import cuda
from polybit.kernels.cuda import streamed, workspace
from polybit.kernels.cuda.schedule import Shape
from polybit.kernels.cuda.stream import stream_layout

LAYOUTS = {
    "5 bits, groups of 128": [(5, 128)] * 6,
    "mixture": [(8, 32), (6, 64), (5, 32), (4, 96), (3, 64), (2, 288)],
    "2 bits": [(2, 64)] * 9,
}


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("width", [32, 160, 1024])
def test_a_matrix_is_counted_to_the_byte(groups: list[tuple[int, int]], width: int) -> None:
    layout = Layout(tuple(Group(bits, rows) for bits, rows in groups))
    shape = Shape(stream_layout(layout), width)
    given = streamed._sorted_input([(shape.layout, torch.arange(layout.in_features))])
    maxima = torch.zeros(len(shape.layout.groups), dtype=torch.int32)
    stream = torch.empty(shape.num_bytes, dtype=torch.uint8)
    held = streamed.Streamed((shape,), torch.float16, stream, maxima, given)
    assert cuda.exl2_bytes(layout, width, torch.float16) == held.num_bytes


def test_small_widths_and_cut_groups_take_more_than_the_file() -> None:
    layout = Layout((Group(5, 128),) * 6)
    file_bytes = storage_bits(layout, 1024, bias=False) / 8
    assert 1.01 < cuda.exl2_bytes(layout, 1024, torch.float16) / file_bytes < 1.03


@pytest.mark.parametrize("multiprocessors", [16, 132, 192])
def test_the_workspace_is_no_more_than_a_plan_counts(monkeypatch: pytest.MonkeyPatch, multiprocessors: int) -> None:
    properties = SimpleNamespace(multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    space = workspace.workspace.__wrapped__(torch.device("cpu"))
    assert space.sums.nbytes + space.counters.nbytes <= cuda.KEPT_BYTES
