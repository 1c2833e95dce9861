"""The weight files of a model folder: which tensor lies in which file, read one at a time. Nothing is written here.

Every `*.safetensors` of the folder is scanned; an index file is not needed and, being often stale, not read.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polybit.errors import FormatError

Kind = Literal["exl2", "gptq", "dense"]

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Extent:
    """The bytes of one tensor: so many from `start` of the file on as its shape and type say."""

    path: Path
    start: int


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies. `handle` is safetensors' open file, which has no public type."""

    path: Path
    stored_name: str
    handle: Any
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its bytes in the file

    def read(self) -> Tensor:
        tensor: Tensor = self.handle.get_tensor(self.stored_name)
        return tensor


class Checkpoint:
    """Lazy access to all tensors of a folder by name; only headers are read until a tensor is asked for."""

    def __init__(self, folder: Path, entries: Mapping[str, Entry], held: Mapping[str, Tensor] | None = None) -> None:
        """`held`: tensors that were read already, and are handed out as they are."""
        self.folder = folder
        self._entries = entries
        self._held = held or {}

    @classmethod
    def open(cls, folder: Path, renames: tuple[tuple[str, str], ...] = ()) -> "Checkpoint":
        """Scan the folder. renames: ordered (old, new) substring replacements on names; `^` binds to the start.

        FormatError: no weight file, a damaged one, or one name in two places with different contents.
        """
        paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        if not paths:
            raise FormatError(f"{folder} holds no *.safetensors file; {_hint(folder)}")
        entries: dict[str, Entry] = {}
        for path in paths:
            for entry in _scan(path):
                name = _renamed(entry.stored_name, renames)
                if name in entries:
                    _require_equal(name, entries[name], entry)
                entries.setdefault(name, entry)
        return cls(folder, entries)

    def holding(self, tensors: Mapping[str, Tensor]) -> "Checkpoint":
        """The same checkpoint, with these of its tensors read already, on any device."""
        return Checkpoint(self.folder, self._entries, tensors)

    def names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def kind(self, key: str) -> Kind | None:
        """How the matrix `key` is stored; None if it is not there. FormatError: in two ways, so of two models."""
        found = [(f"{key}.{suffix}", kind) for suffix, kind in _KINDS if f"{key}.{suffix}" in self]
        if len(found) > 1:
            first, second = (f"{name} ({self.file_of(name).name})" for name, _ in found[:2])
            raise FormatError(
                f"{self.folder} holds both {first} and {second}; it mixes two models: move the files of one away"
            )
        return found[0][1] if found else None

    def names_of(self, key: str) -> list[str]:
        """Names of the tensors `{key}.*`, one level deep: the parts of one matrix."""
        return self._by_key.get(key, [])

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        by_key: dict[str, list[str]] = {}
        for name in self._entries:
            by_key.setdefault(name.rpartition(".")[0], []).append(name)
        return by_key

    def file_of(self, name: str) -> Path:
        return self._entry(name).path

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """FormatError: a type that torch or this program does not know."""
        entry = self._entry(name)
        if entry.dtype not in DTYPES:
            raise FormatError(f"{name} has data type {entry.dtype}, which is not supported ({entry.path.name})")
        return DTYPES[entry.dtype]

    def extent(self, name: str) -> Extent:
        entry = self._entry(name)
        return Extent(entry.path, entry.start)

    def num_bytes(self, name: str) -> int:
        return torch.Size(self.shape(name)).numel() * self.dtype(name).itemsize

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU unless it is held already."""
        self.dtype(name)
        if name in self._held:
            return self._held[name]
        entry = self._entry(name)
        try:
            return entry.read()
        except (SafetensorError, OSError, RuntimeError) as error:
            raise unreadable(entry.path, error) from error

    def narrow(self, name: str, axis: int, start: int, stop: int) -> Tensor:
        """Entries [start, stop) along `axis` (0 or 1), without reading the rest."""
        self.dtype(name)
        entry = self._entry(name)
        cut = slice(start, stop)
        try:
            part: Tensor = entry.handle.get_slice(entry.stored_name)[(slice(None),) * axis + (cut,)]
        except (SafetensorError, OSError, RuntimeError) as error:
            raise unreadable(entry.path, error) from error
        return part

    def check(self, name: str, dtypes: Collection[torch.dtype], shape: tuple[int | None, ...]) -> None:
        """FormatError unless `name` is there, of one of `dtypes` and of this shape; None in it stands for any size."""
        found_dtype, found = self.dtype(name), self.shape(name)
        if found_dtype not in dtypes:
            raise self.damaged(name, f"is {_plain(found_dtype)}, expected {' or '.join(_plain(d) for d in dtypes)}")
        if len(found) != len(shape) or any(want not in (None, got) for got, want in zip(found, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.damaged(name, f"has shape {list(found)}, expected [{wanted}]")

    def damaged(self, name: str, finding: str) -> FormatError:
        """The error for a tensor that is there but cannot be right: `{name} {finding} ({file}); what to do`."""
        return FormatError(
            f"{name} {finding} ({self.file_of(name).name}); "
            "the file is damaged or does not belong to this config.json: fetch the model again"
        )

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise FormatError(
                f"{name} is in none of the weight files of {self.folder}; "
                "a file is missing or belongs to another model: fetch the model again"
            )
        return entry


_KINDS: tuple[tuple[str, Kind], ...] = (("q_weight", "exl2"), ("qweight", "gptq"), ("weight", "dense"))


def unreadable(path: Path, error: Exception) -> FormatError:
    """The error for a weight file that cannot be opened or read."""
    if path.is_file() and not os.access(path, os.R_OK):  # of which safetensors says that it is not there
        return FormatError(f"{path} may not be read by this user; ask its owner for the right to")
    reason = " ".join(str(error).split())
    return FormatError(f"{path} cannot be read as safetensors: {reason}; fetch the file again")


def _scan(path: Path) -> list[Entry]:
    try:
        handle = safe_open(path, framework="pt", device="cpu")
        starts = _starts(path)
        return [_entry_of(path, name, handle, starts[name]) for name in handle.keys()]  # noqa: SIM118 - not a mapping: iterating it fails
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def _starts(path: Path) -> dict[str, int]:
    """Where in the file each tensor's bytes begin, from a header that safetensors has found valid."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _entry_of(path: Path, name: str, handle: Any, start: int) -> Entry:
    header = handle.get_slice(name)
    return Entry(path, name, handle, header.get_dtype(), tuple(header.get_shape()), start)


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for old, new in renames:
        if not old.startswith("^"):
            name = name.replace(old, new)
        elif name.startswith(old[1:]):
            name = new + name.removeprefix(old[1:])
    return name


def _require_equal(name: str, first: Entry, second: Entry) -> None:
    """Some published folders hold a tied matrix twice, which harms nobody; two different tensors of one name do."""
    same_type = (first.dtype, first.shape) == (second.dtype, second.shape)
    try:
        equal = same_type and torch.equal(first.read(), second.read())
    except (SafetensorError, OSError, RuntimeError) as error:
        raise unreadable(second.path, error) from error
    if not equal:
        raise FormatError(
            f"{name} is in {first.path.name} and, with other contents, in {second.path.name}; "
            "the folder mixes two models: move one of the files away"
        )


def _hint(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    if any(folder.glob("*.gguf")):
        return "give the .gguf file itself instead of its folder"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        return "it holds pickled weights, which can run code and are not read: convert them to safetensors first"
    return "is this the model's folder, and is the download complete?"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
