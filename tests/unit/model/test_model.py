"""A loaded model: batches, caches and kinds of weights must not change what it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from closeness import assert_close
from polybit.errors import ConfigError, KernelError, OutOfMemory
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.step import whole_rows
from random_model import write_random_model

CPU = LoadOptions(device="cpu")


def test_rows_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    model = load(open_model(write_random_model(tmp_path), CPU))
    rows = torch.randint(0, 96, (3, 17), generator=torch.Generator().manual_seed(3))
    together = model.forward(rows.flatten(), *whole_rows(3, 17, model.device)).view(3, 17, -1)
    alone = torch.stack([model.forward(row, *whole_rows(1, 17, model.device)) for row in rows])
    assert_close(together, alone, "model")


def test_logits_at_picks_rows(tmp_path: Path) -> None:
    model = load(open_model(write_random_model(tmp_path), CPU))
    tokens = torch.arange(9)
    everything = model.forward(tokens, *whole_rows(1, 9, model.device))
    picked = model.forward(tokens, *whole_rows(1, 9, model.device), torch.tensor([8, 2]))
    assert_close(picked, everything[[8, 2]], "model")


def test_progress_counts_to_its_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    load(open_model(write_random_model(tmp_path), CPU), lambda done, total: told.append((done, total)))
    assert told == [(done, 4) for done in range(1, 5)]


def test_half_precision_stays_close(tmp_path: Path) -> None:
    source = open_model(write_random_model(tmp_path), CPU)
    tokens = torch.arange(20)
    exact = load(source).forward(tokens, *whole_rows(1, 20, torch.device("cpu")))
    half = load(replace(source, options=LoadOptions(device="cpu", dtype="float16")))
    error = (half.forward(tokens, *whole_rows(1, 20, half.device)) - exact).norm() / exact.norm()
    assert half.dtype == torch.float16
    assert error < 1e-2


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (LoadOptions(device="gpu9"), KernelError, "gpu9"),
        (LoadOptions(device="cuda:64"), KernelError, "CUDA devices"),
        (LoadOptions(device="meta"), KernelError, "not supported"),
        (LoadOptions(device="cpu", dtype="int8"), ConfigError, "int8"),
        (LoadOptions(device="cpu", backend="magic"), KernelError, "magic"),
    ],
)
def test_bad_options(tmp_path: Path, options: LoadOptions, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load(open_model(write_random_model(tmp_path), options))


def test_an_unquantized_model_is_never_told_to_stay_packed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load(open_model(write_random_model(tmp_path), CPU))
    assert "weights are not quantized" in caplog.text
    with pytest.raises(OutOfMemory) as raised:
        load(open_model(tmp_path, replace(CPU, unpacked=True)), cache_tokens=1 << 60)
    assert "unpacked" not in str(raised.value)
