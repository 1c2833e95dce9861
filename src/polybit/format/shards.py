"""Writing a model's tensors as safetensors files of limited size: `output.safetensors`, or `output-00001-of-00003...`.

Tensors arrive module by module and leave RAM as soon as a file's worth is there. Until `finish`, files carry temporary
names that no reader looks for; an error or an interrupt before that removes them.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from polybit.errors import FormatError
from polybit.format.files import sync, temporary_name, unwritable


class ShardWriter:
    """Use as a context manager, `add` every module in model order, then `finish`.

    `metadata` goes into each file's header; EXL2 files have none.
    """

    def __init__(self, folder: Path, limit_bytes: int, stem: str = "output", metadata: dict[str, str] | None = None):
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._stem = stem
        self._metadata = metadata
        self._pending: dict[str, Tensor] = {}
        self._written: list[Path] = []

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take one module's tensors, and write a shard if more is pending than fits one.

        FormatError: no pending tensor fits a shard, or the disk is full.
        """
        self._pending.update(tensors)
        if sum(tensor.nbytes for tensor in self._pending.values()) > self._limit_bytes:
            self._write(self._cut())

    def finish(self) -> list[Path]:
        """Write what is pending, and give all files their names; they are complete from here on."""
        if self._pending:
            self._write(self._cut())
        if self._pending:  # whatever one cut leaves is the last shard, at any size
            self._write(dict(self._pending))
        paths = [self._folder / name for name in shard_names(self._stem, len(self._written))]
        for temporary, path in zip(self._written, paths, strict=True):
            try:
                temporary.replace(path)
            except OSError as error:
                raise unwritable(path, error) from error
        self._written = []
        return paths

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)

    def _cut(self) -> dict[str, Tensor]:
        """The pending tensors that go into the next shard: each in order that still fits; others wait."""
        chosen, size = {}, 0
        for name, tensor in self._pending.items():
            if size + tensor.nbytes <= self._limit_bytes:
                chosen[name] = tensor
                size += tensor.nbytes
        if not chosen:
            raise self._nothing_fits()
        return chosen

    def _nothing_fits(self) -> FormatError:
        name, smallest = min(self._pending.items(), key=lambda item: item[1].nbytes)
        return FormatError(
            f"{name} takes {smallest.nbytes} bytes, but a shard is limited to {self._limit_bytes}; raise the shard size"
        )

    def _write(self, tensors: dict[str, Tensor]) -> None:
        path = self._folder / f"{self._stem}-{len(self._written) + 1:05}.safetensors"
        temporary = temporary_name(path)
        self._written.append(temporary)
        try:
            temporary.touch()
            usual_mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata=self._metadata)
            temporary.chmod(usual_mode)  # safetensors makes files that only their owner can read
            sync(temporary)
        except (SafetensorError, OSError) as error:
            raise unwritable(path, error) from error
        for name in tensors:
            del self._pending[name]


def shard_names(stem: str, count: int) -> list[str]:
    """File names of `count` shards."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
