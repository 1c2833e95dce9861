from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from polybit.errors import FormatError
from polybit.format import shards
from polybit.format.checkpoint import Checkpoint
from polybit.format.shards import ShardWriter


def of_bytes(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8)


def names_in(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_what_fits_goes_into_one_file(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).half()}
    with ShardWriter(tmp_path, 1000) as writer:
        for name, tensor in tensors.items():
            writer.add({name: tensor})
        paths = writer.finish()
    assert paths == [tmp_path / "output.safetensors"]
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())


def test_the_file_is_readable_to_others_and_has_no_metadata(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 1000) as writer:
        writer.add({"a": of_bytes(8)})
        (path,) = writer.finish()
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    with safe_open(path, framework="pt") as file:
        assert file.metadata() is None


def test_a_shard_takes_what_fits_and_leaves_the_rest_for_the_next(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 100) as writer:
        writer.add({"a": of_bytes(60)})
        writer.add({"b": of_bytes(50), "c": of_bytes(40)})  # b does not fit beside a, c does
        writer.add({"d": of_bytes(45)})
        writer.add({"e": of_bytes(30)})  # b, d and e are over the limit together
        paths = writer.finish()
    assert [path.name for path in paths] == [f"output-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [names_in(path) for path in paths] == [{"a", "c"}, {"b", "d"}, {"e"}]
    assert sorted(tmp_path.iterdir()) == paths


def test_what_one_cut_leaves_at_the_end_is_one_file_of_any_size(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 100) as writer:
        writer.add({name: of_bytes(90) for name in "abcd"})
        paths = writer.finish()
    assert [names_in(path) for path in paths] == [{"a"}, {"b"}, {"c", "d"}]


def test_a_tensor_larger_than_a_shard_is_refused(tmp_path: Path) -> None:
    expected = pytest.raises(FormatError, match="embed takes 101 bytes, but a shard is limited to 100")
    with expected, ShardWriter(tmp_path, 100) as writer:
        writer.add({"embed": of_bytes(101)})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_without_finish(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, 10) as writer:  # noqa: PT012 - interrupted within
        writer.add({"a": of_bytes(8), "b": of_bytes(8)})
        assert list(tmp_path.iterdir()) != []
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writes beyond fail for real, with "File too large"."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_write_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    failing = pytest.raises(FormatError, match=r"output-00001\.safetensors could not be written: .*File too large")
    with files_limited_to(4096), failing as error, ShardWriter(tmp_path, 1 << 20) as writer:
        writer.add({"a": of_bytes(100_000)})
        writer.finish()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", fail)
    full = pytest.raises(FormatError, match="the disk is full; free some space and run again")
    with full, ShardWriter(tmp_path, 100) as writer:
        writer.add({"a": of_bytes(60)})
        writer.finish()
    assert list(tmp_path.iterdir()) == []
