"""Forward passes as the engine makes them: prompts by chunks, then a token of each sequence at a time, by argmax."""

import torch
from torch import Tensor

from polybit.amounts import gibibytes
from polybit.cache import PAGE_TOKENS, Holding, KVPool, pages_for
from polybit.errors import OutOfMemory
from polybit.generator.graphs import decode_graphs
from polybit.generator.layout import lay_out, run_of
from polybit.generator.runner import Runner
from polybit.generator.scheduler import Part
from polybit.model.device import current
from polybit.model.footprint import CHUNK_TOKENS, token_bytes
from polybit.model.machine import free_bytes
from polybit.model.model import Model


class Batch:
    """Sequences of equally many random tokens, and the pool that holds their keys and values."""

    def __init__(self, model: Model, batch: int, length: int) -> None:
        """`batch` sequences of `length` tokens that the model has not seen. Raises OutOfMemory."""
        pages = pages_for(length)
        _check_ram(model, batch * pages * PAGE_TOKENS)
        self._model, self._length, self._filled = model, length, 0
        num_tokens = batch * pages * PAGE_TOKENS
        self._pool = KVPool(model.spec, num_tokens, model.dtype, model.block_devices, model.backend, model.cache)
        graphs = decode_graphs(model, self._pool, wanted=True)
        self._runner = Runner(model, self._pool, model.spec.embedding.num_rows, graphs)
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.spec.embedding.num_rows, (batch, length), generator=random)
        self._sequences = [Holding(row) for row in tokens.tolist()]
        for sequence in self._sequences:
            sequence.extend(self._pool.book, length)

    def fill(self) -> None:
        """Random keys and values for every token but the last of each: what stands there costs no time."""
        runs = [run_of(Part(sequence, sequence.num_pending - 1)) for sequence in self._sequences]
        _, step = lay_out(runs, self._model.device)
        for layer, block in enumerate(self._model.spec.blocks):
            shape = (2, step.num_tokens, block.attn.num_kv_heads, block.attn.head_dim)
            device = self._model.block_devices[layer]
            with current(device):
                k, v = torch.randn(shape, dtype=self._model.dtype, device=device)
                self._pool.write(layer, k, v, step.to(device))
        self._filled = self._length - 1
        self._rewind()

    def again(self) -> Tensor:
        """`step` from where the sequences stood at first, however many there have been."""
        self._rewind()
        return self.step()

    def step(self) -> Tensor:
        """Everything pending through the model; each sequence takes its likeliest next token. -> its logits [S, V]

        Waits for the device once, at the end.
        """
        while (logits := self._pass()) is None:
            pass
        for sequence, token in zip(self._sequences, logits.argmax(-1).tolist(), strict=True):
            sequence.tokens.append(token)
        return logits

    def _rewind(self) -> None:
        for sequence in self._sequences:
            del sequence.tokens[self._length :]
            sequence.num_stored = self._filled

    def _pass(self) -> Tensor | None:
        """One forward pass -> the logits after each sequence, None where more of the prompts is to come."""
        parts = tuple(Part(sequence, min(sequence.num_pending, CHUNK_TOKENS)) for sequence in self._sequences)
        logits = self._runner.forward(parts)
        return logits if len(logits) else None


def _check_ram(model: Model, num_tokens: int) -> None:
    """A graphics card refuses by itself; main memory is lent before it is there."""
    if model.device.type == "cuda":
        return
    per_token = sum(token_bytes(block.attn, model.cache, model.dtype) for block in model.spec.blocks)
    needed, free = num_tokens * per_token, free_bytes(model.device)
    if needed > free:
        raise OutOfMemory(f"keys and values need {gibibytes(needed)}, but {gibibytes(free)} are free")
