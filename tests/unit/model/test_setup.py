"""What the log says of how a model is loaded."""

from pathlib import Path

import pytest

from polybit.kernels import reference
from polybit.model.options import LoadOptions
from polybit.model.setup import set_up, tell
from polybit.model.source import open_model
from random_model import write_random_model


@pytest.mark.parametrize("reads_them", [False, True])
def test_a_quantized_cache_that_is_dequantized_at_every_step_is_said_to_take_time(
    reads_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reference, "READS_QUANTIZED_PAGES", reads_them)
    source = open_model(write_random_model(tmp_path), LoadOptions(device="cpu", backend="reference", cache="q4"))
    tell(set_up(source, 256), source)
    assert ("dequantizes the quantized cache at every step" in caplog.text) == (not reads_them)
