import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from polybit.errors import FormatError
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


# Runs in a process of its own, whose files may not grow beyond 4 KiB: the writes that fail are real.
LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from polybit.errors import FormatError
from polybit.format.shards import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with ShardWriter(Path(sys.argv[1]), 1 << 20) as writer:
        writer.add({"a": torch.zeros(100_000)})
        writer.finish()
except FormatError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on file sizes")
def test_a_failing_write_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1
    assert "output-00001.safetensors could not be written: " in run.stdout
    assert list(tmp_path.iterdir()) == []
