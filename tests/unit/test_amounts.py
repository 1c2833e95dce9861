import pytest

from polybit.amounts import gibibytes, gigabytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (5, "5 bytes"),
        (1_000, "1 kB"),
        (1_234_567, "1.23 MB"),
        (102_400_000, "102 MB"),
        (999_000_000, "999 MB"),
        (1_000_000_000, "1.00 GB"),
        (1_234_567_890_123, "1234.57 GB"),
    ],
)
def test_gigabytes(num_bytes: int, text: str) -> None:
    assert gigabytes(num_bytes) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(1 << 10, "1 KiB"), (640 << 20, "640 MiB"), (47 << 29, "23.50 GiB"), (1 << 30, "1.00 GiB")]
)
def test_gibibytes(num_bytes: int, text: str) -> None:
    assert gibibytes(num_bytes) == text
