"""Tensors of a checkpoint on their way to a device before they are asked for, one part of the model ahead.

Threads read the files into pinned buffers, from which a stream of its own copies to the device: reading, copying and
whatever the caller does with the part before overlap. Small tensors are left where they are: they are checked on the
CPU, and cost nothing.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from polybit.format.checkpoint import Checkpoint, unreadable

WORKERS = 4  # one core copies 5-10 GB/s out of the page cache
BUFFERS = 8
BUFFER_BYTES = 1 << 24
SMALLEST = 1 << 20  # bytes; below, a tensor is not worth a journey of its own


@dataclass(frozen=True)
class Part:
    """What is prepared together: names of tensors, those that are not in the checkpoint or small left out."""

    names: tuple[str, ...]
    device: torch.device


def read_ahead(checkpoint: Checkpoint, parts: Sequence[Part]) -> Iterator[Checkpoint]:
    """For each part, the checkpoint with that part's large tensors on its device. FormatError: a file is too short."""
    with _Reader({part.device for part in parts}) as reader:
        pending = reader.start(checkpoint, parts[0])
        for following in (*parts[1:], None):
            ahead = None if following is None else reader.start(checkpoint, following)
            yield checkpoint.holding(pending.take())
            if ahead is not None:
                pending = ahead


def read_into(tensor: Tensor, checkpoint: Checkpoint, name: str) -> None:
    """All of one tensor into memory of its shape and type on the CPU, by as many threads. FormatError."""
    target, extent = tensor.view(-1).view(torch.uint8), checkpoint.extent(name)
    with ThreadPoolExecutor(WORKERS) as pool:
        starts = range(0, len(target), BUFFER_BYTES)
        reads = [
            pool.submit(_read, extent.path, extent.start + start, target[start : start + BUFFER_BYTES])
            for start in starts
        ]
    for read in reads:
        read.result()


@dataclass(frozen=True)
class _Pending:
    tensors: dict[str, Tensor]
    copies: "list[Future[None]]"
    lane: "_Lane"

    def take(self) -> dict[str, Tensor]:
        """What has arrived; nobody else holds it from here on."""
        for copy in self.copies:
            copy.result()
        self.lane.join()
        taken = dict(self.tensors)
        self.tensors.clear()
        return taken


class _Reader:
    """Threads, their buffers, and a lane for each device."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._lanes = {device: _Lane(device) for device in devices}
        self._free: SimpleQueue[_Buffer] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(_Buffer(pinned=any(device.type == "cuda" for device in devices)))
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="read-ahead")

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for lane in self._lanes.values():
            lane.join()  # what was begun still writes into memory that is about to be let go

    def start(self, checkpoint: Checkpoint, part: Part) -> _Pending:
        lane = self._lanes[part.device]
        tensors: dict[str, Tensor] = {}
        copies: list[Future[None]] = []
        for name in part.names:
            if name not in checkpoint or checkpoint.num_bytes(name) < SMALLEST:
                continue
            target = torch.empty(checkpoint.num_bytes(name), dtype=torch.uint8, device=part.device)
            tensors[name] = target.view(checkpoint.dtype(name)).view(checkpoint.shape(name))
            lane.fork()
            extent = checkpoint.extent(name)
            for start in range(0, len(target), BUFFER_BYTES):
                piece = target[start : start + BUFFER_BYTES]
                copies.append(self._pool.submit(self._copy, extent.path, extent.start + start, piece, lane))
        return _Pending(tensors, copies, lane)

    def _copy(self, path: Path, start: int, target: Tensor, lane: "_Lane") -> None:
        buffer = self._free.get()
        try:
            buffer.fill(path, start, len(target))
            lane.copy(buffer, target)
        finally:
            self._free.put(buffer)


class _Buffer:
    """Pinned memory between a file and a device."""

    def __init__(self, pinned: bool) -> None:
        self.data = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=pinned)
        self.left: torch.cuda.Event | None = None  # its last copy is done

    def fill(self, path: Path, start: int, count: int) -> None:
        if self.left is not None:
            self.left.synchronize()
        _read(path, start, self.data[:count])


def _read(path: Path, start: int, into: Tensor) -> None:
    """As many bytes as `into` [n] uint8 has. FormatError: the file ends before."""
    view = memoryview(into.numpy().data)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while view:
                read = file.readinto(view)
                if not read:
                    raise unreadable(path, EOFError(f"it ends {len(view)} bytes early"))
                view = view[read:]
    except OSError as error:
        raise unreadable(path, error) from error


class _Lane:
    """Copies to one device, in a stream of their own where it has streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fork(self) -> None:
        """Copies from here on follow what the device was given before: their target's memory may still be in use."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def join(self) -> None:
        """What the device is given from here on follows the copies."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @torch.inference_mode()
    def copy(self, buffer: _Buffer, target: Tensor) -> None:
        with torch.cuda.stream(self._stream):  # which does nothing for None
            target.copy_(buffer.data[: len(target)], non_blocking=True)
        if self._stream is not None:
            buffer.left = self._stream.record_event()
