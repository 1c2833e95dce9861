"""The K/V pool: pages of all layers, allocated once and shared by all sequences. It does not grow.

One page more than sequences can have, the spare one, takes what sequences that only fill up a batch write.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from polybit import spec
from polybit.amounts import gibibytes
from polybit.cache.holding import Copy
from polybit.cache.pages import PAGE_TOKENS, PageBook, pages_for
from polybit.errors import OutOfMemory
from polybit.kernels.pages import FULL, KVBits, Pages, new_pages, tensors_of
from polybit.kernels.protocol import Backend
from polybit.model.footprint import token_bytes
from polybit.modules.step import Step


class KVPool:
    """A `KVStore` over pages of PAGE_TOKENS tokens; `book` says who holds which."""

    is_written_by_ops = True

    def __init__(
        self,
        model: spec.Model,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device | Sequence[torch.device],
        backend: Backend,
        bits: KVBits = FULL,
    ) -> None:
        """Room for at least `num_tokens`, on one device or on that of each block.

        Raises OutOfMemory, or ConfigError where the heads cannot be quantized.
        """
        pages = pages_for(num_tokens)
        devices = [device] * len(model.blocks) if isinstance(device, torch.device) else device
        shapes = [(pages + 1, PAGE_TOKENS, block.attn.num_kv_heads, block.attn.head_dim) for block in model.blocks]
        try:
            # Not zeroed, so that a system lends only what is written: attention never reads beyond a sequence's length.
            self._layers = [
                (new_pages(shape, bits.k, dtype, device), new_pages(shape, bits.v, dtype, device))
                for shape, device in zip(shapes, devices, strict=True)
            ]
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU raises the plain kind
            needed = sum(token_bytes(block.attn, bits, dtype) for block in model.blocks) * (pages + 1) * PAGE_TOKENS
            raise OutOfMemory(
                f"a K/V pool of {pages * PAGE_TOKENS} tokens needs {gibibytes(needed)} on {_listed(devices)} "
                f"({str(error).splitlines()[0]}); load with a smaller --cache-tokens (cache_tokens)"
            ) from None
        self.book = PageBook(pages)
        self._backend = backend

    @property
    def num_tokens(self) -> int:
        """Tokens that all sequences together can hold."""
        return self.book.total * PAGE_TOKENS

    @property
    def spare_page(self) -> int:
        """Nobody's: anyone may write there, and nobody reads it but what was written in the same step."""
        return self.book.total

    @property
    def num_bytes(self) -> int:
        return sum(self.device_bytes.values())

    @property
    def device_bytes(self) -> dict[torch.device, int]:
        """What each device holds of it, in the order of blocks."""
        held: dict[torch.device, int] = {}
        for layer in self._layers:
            for tensor in chain(*map(tensors_of, layer)):
                held[tensor.device] = held.get(tensor.device, 0) + tensor.nbytes
        return held

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        self._backend.write_kv(k, v, *self.pages(layer), step.slots)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Whole pages, in all layers."""
        sources, targets = [copy.source for copy in copies], [copy.target for copy in copies]
        for tensor in chain(*map(tensors_of, chain(*self._layers))):
            tensor[targets] = tensor[sources]

    def pages(self, layer: int) -> tuple[Pages, Pages]:
        return self._layers[layer]


def _listed(devices: Sequence[torch.device]) -> str:
    return ", ".join(dict.fromkeys(map(str, devices)))
