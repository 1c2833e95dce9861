"""Where the states of a pass lie."""

import pytest
import torch

from polybit.quantizer import part


def test_states_lie_on_the_device_unless_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "RESIDENT_BYTES", 4 * 2 * 3 * 5)
    fitting, larger = torch.zeros(2, 3, 5), torch.zeros(2, 3, 6)
    assert part.resident(fitting, torch.device("meta")).device.type == "meta"
    assert part.resident(larger, torch.device("meta")) is larger
