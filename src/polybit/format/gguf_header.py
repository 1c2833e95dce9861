"""The header of a GGUF file: its metadata and where its tensors lie. Every length is checked before it is believed.

The layout is that of the GGUF specification, versions 2 and 3, little-endian. The `gguf` library reads the same, but
takes lengths on trust and builds an array object for every token of the vocabulary; it serves here to dequantize only.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from polybit.errors import FormatError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALARS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}

T = TypeVar("T")


class Metadata:
    """The key-value part, read by type. It remembers which keys were read, so that none goes unnoticed."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self._values = values
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str | None = None) -> str:
        return self._get(key, default, str, "a text")

    def count(self, key: str, default: int | None = None) -> int:
        """An integer that is not negative."""
        number = self._get(key, default, int, "a number")
        if number < 0:
            raise self.unusable(key, str(number), "0 or more")
        return number

    def real(self, key: str, default: float | None = None) -> float:
        number = self._get(key, default, (int, float), "a number")
        return float(number)

    def flag(self, key: str, default: bool) -> bool:
        return self._get(key, default, bool, "true or false")

    def texts(self, key: str) -> list[str]:
        return self._list(key, str)

    def counts(self, key: str) -> list[int]:
        return self._list(key, int)

    def reals(self, key: str) -> list[float]:
        return self._list(key, float)

    def unread(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix` and that nobody asked for."""
        return sorted(key for key in self._values if key.startswith(prefix) and key not in self._read)

    def unusable(self, key: str, found: str, expected: str) -> FormatError:
        return FormatError(f"{self.where}: metadata {key} is {found}, expected {expected}; fetch the file again")

    def _get(self, key: str, default: T | None, kind: type[T] | tuple[type, ...], expected: str) -> T:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise FormatError(f"{self.where}: metadata {key} is missing; the file is damaged or made by an old tool")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.unusable(key, _described(value), expected)
        # A T by the check above, which mypy cannot follow through a tuple of types.
        return value  # type: ignore[return-value]

    def _list(self, key: str, kind: type[T]) -> list[T]:
        values: list[T] = self._get(key, None, list, "a list")
        if any(type(value) is not kind for value in values):
            raise self.unusable(key, "a list of mixed or other things", f"a list of {kind.__name__}")
        return values


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its type as the file numbers types, its shape as torch would say it, its first byte in the file."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    path: Path
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    num_bytes: int  # of the whole file


def read_header(path: Path) -> Header:
    """FormatError: not a GGUF file, damaged, truncated, or of a version or byte order that is not supported."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = error.strerror if isinstance(error, OSError) else error
        raise FormatError(f"{path} cannot be read: {reason}; check the path, or fetch the file again") from error


class _Cursor:
    """Reads forward through a file, and never beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > len(self.data):
            raise self.damaged(f"ends at byte {len(self.data)}, inside its header")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def text(self) -> str:
        start = self.position
        try:
            return self.take(self.u64()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"holds a text at byte {start} that is not UTF-8") from error

    def damaged(self, finding: str) -> FormatError:
        return FormatError(f"{self.path} {finding}; fetch the file again")


def _parse(path: Path, data: mmap.mmap) -> Header:
    cursor = _Cursor(path, data)
    _check_version(cursor)
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    values = _named(cursor, num_keys, "metadata key", partial(_value, cursor))
    infos = _named(cursor, num_tensors, "tensor", partial(_tensor_fields, cursor))
    metadata = Metadata(str(path), values)
    alignment = metadata.count("general.alignment", DEFAULT_ALIGNMENT)
    if alignment == 0 or alignment & (alignment - 1):
        raise metadata.unusable("general.alignment", str(alignment), "a power of two")
    start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: TensorInfo(name, type_id, shape, start + offset) for name, (shape, type_id, offset) in infos.items()
    }
    return Header(path, metadata, tensors, len(data))


def _check_version(cursor: _Cursor) -> None:
    if cursor.data[:4] != MAGIC:
        raise cursor.damaged("is not a GGUF file")
    cursor.take(4)
    version = cursor.u32()
    if version not in VERSIONS:
        raise FormatError(f"{cursor.path} is GGUF of version {version} (or big-endian); versions 2 and 3 are supported")


def _named(cursor: _Cursor, count: int, what: str, read: Callable[[], T]) -> dict[str, T]:
    """`count` entries, each a name and what `read` makes of the bytes after it."""
    entries: dict[str, T] = {}
    for _ in range(count):
        name = cursor.text()
        if name in entries:
            raise cursor.damaged(f"holds {what} {name[:80]!r} twice")
        entries[name] = read()
    return entries


def _value(cursor: _Cursor) -> Any:
    kind = cursor.u32()
    if kind == STRING:
        return cursor.text()
    if kind == ARRAY:
        return _array(cursor)
    (value,) = _scalars(cursor, kind, 1)
    return value


def _array(cursor: _Cursor) -> list[Any]:
    kind, count = cursor.u32(), cursor.u64()
    if kind == STRING:
        return [cursor.text() for _ in range(count)]
    return _scalars(cursor, kind, count)


def _scalars(cursor: _Cursor, kind: int, count: int) -> list[Any]:
    if kind not in SCALARS:
        raise cursor.damaged(f"holds a value of unknown type {kind} at byte {cursor.position}")
    dtype = SCALARS[kind]
    values = np.frombuffer(cursor.take(count * dtype.itemsize), dtype)
    if dtype.itemsize == 4 and dtype.kind == "f" and count == 1:
        return [float(str(values[0]))]  # the decimal that was meant: 1e-05, not 9.999999747378752e-06
    return list(values.tolist())


def _tensor_fields(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    """shape, type, offset from the start of the data"""
    num_dimensions = cursor.u32()
    if num_dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"holds a tensor of {num_dimensions} dimensions at byte {cursor.position}")
    shape = tuple(cursor.u64() for _ in range(num_dimensions))
    return shape[::-1], cursor.u32(), cursor.u64()


def _described(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]
