"""Decode steps as CUDA graphs: all launches of a step at once, captured at the first use of each batch size.

A graph runs the same kernels over the same memory each time. So a step's numbers are copied to a place of their own,
and a batch is filled up to the next size by tokens that lie in the pool's spare page: each a sequence, or where
sequences have guesses to try out, all together one more sequence.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from polybit import spec
from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.kernels import reference
from polybit.model.device import current
from polybit.model.model import Model
from polybit.model.offload import FerriedLayer
from polybit.model.tensor_tree import gather, over
from polybit.modules.step import Step

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)  # sequences of a captured step; the last is also the most tokens
READ_BY_HOST = frozenset({"attention", "matmul"})  # ops whose reference reads device tensors: lengths, group layouts

Work = Callable[[], Tensor]  # its result may lie in the same memory each time
Capture = Callable[[Work], Work]
Launch = Callable[[Tensor], Tensor]  # tokens [T] on the CPU -> logits [T, V] fp32, good until the next launch


class DecodeGraphs:
    """Steps of one token for each of up to SIZES[-1] sequences of a pool, or of some guesses behind it."""

    def __init__(self, model: Model, pool: KVPool, capture: Capture, guesses: int = 0) -> None:
        """`guesses`: of a sequence in a step, at most."""
        self.max_queries = guesses + 1
        self._model = model
        self._pool = pool
        self._capture = capture
        self._context = min(model.max_seq_len, pool.num_tokens)
        self._ropes = [stage.ropes.reserve(self._context) for stage in model.stages]  # kept, as graphs read them
        self._steps: dict[tuple[int, bool], CapturedStep] = {}

    @torch.inference_mode()
    def prepare(self, step: Step) -> Launch:
        """All of a step on the CPU but its tokens; may be done while the device works on the one before."""
        size = next(size for size in SIZES if size >= len(step.lengths))
        key = size, step.max_queries > 1
        if key not in self._steps:
            idle = self._idle_guesses(size) if step.max_queries > 1 else self._idle(size)
            self._steps[key] = CapturedStep(*idle, self._model, self._pool, self._capture)
        return self._steps[key].prepare(step)

    def _idle(self, size: int) -> tuple[Tensor, Step]:
        """A batch of nothing but sequences that fill it up."""
        starts = torch.arange(size + 1, dtype=torch.int32)
        return self._in_spare_page(torch.zeros(size, dtype=torch.int64), starts, torch.ones(size), max_queries=1)

    def _idle_guesses(self, size: int) -> tuple[Tensor, Step]:
        """The same where up to `size` sequences have guesses: one sequence fills it up."""
        num_tokens = min(SIZES[-1], size * self.max_queries)
        starts = torch.full((size + 2,), num_tokens, dtype=torch.int32)
        starts[0] = 0
        return self._in_spare_page(
            torch.arange(num_tokens), starts, torch.full((size + 1,), num_tokens), self.max_queries
        )

    def _in_spare_page(
        self, places: Tensor, query_starts: Tensor, lengths: Tensor, max_queries: int
    ) -> tuple[Tensor, Step]:
        """Tokens at places [T] of the page."""
        spare, num_pages = self._pool.spare_page, pages_for(self._context)
        step = Step(
            positions=torch.zeros_like(places),
            slots=spare * PAGE_TOKENS + places,
            page_table=torch.full((len(lengths), num_pages), spare, dtype=torch.int32),
            query_starts=query_starts,
            lengths=lengths.to(torch.int32),
            max_queries=max_queries,
            max_length=self._context,
        )
        return torch.zeros_like(places), step


class CapturedStep:
    """The decode step of one batch size: what it reads on the device, the same on the host, and its replay."""

    def __init__(self, tokens: Tensor, step: Step, model: Model, pool: KVPool, capture: Capture) -> None:
        """`tokens` and `step`: an idle batch, from which the places of a smaller one remain."""
        batch, self._idle = gather((tokens, step), lambda num_bytes: torch.zeros(num_bytes, dtype=torch.uint8))
        self._on_host = self._idle.clone()
        self._on_device = self._idle.to(model.device, copy=True)
        _, self._step = over(batch, self._on_host)
        device_tokens, device_step = over(batch, self._on_device)
        self._replay = capture(lambda: model.forward(device_tokens, device_step, pool))

    def prepare(self, step: Step) -> Launch:
        self._fill(step)
        # Pinned anew each time: torch hands such memory out again only when copies from it are done.
        source = self._on_host.pin_memory() if self._on_device.is_cuda else self._on_host

        def launch(tokens: Tensor) -> Tensor:
            with torch.inference_mode():
                source[: tokens.nbytes].view(tokens.dtype)[:] = tokens  # they come first in a batch
                self._on_device.copy_(source, non_blocking=True)
                return self._replay()[: len(tokens)]

        return launch

    def _fill(self, step: Step) -> None:
        self._on_host.copy_(self._idle)
        num_tokens, (count, num_pages) = step.num_tokens, step.page_table.shape
        self._step.positions[:num_tokens] = step.positions
        self._step.slots[:num_tokens] = step.slots
        self._step.lengths[:count] = step.lengths
        self._step.page_table[:count, :num_pages] = step.page_table
        if self._step.max_queries > 1:
            self._step.query_starts[: count + 1] = step.query_starts
            self._step.query_starts[count + 1 :] = self._step.num_tokens
            self._step.lengths[count] = self._step.num_tokens - num_tokens


def cuda_capture(device: torch.device) -> Capture:
    """Graphs of a device that share their memory, so only one runs at a time."""
    with current(device):
        memory, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(work: Work) -> Work:
        with current(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()  # compiles kernels and makes room that lasts, neither of which a graph may do
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with _nothing_freed(), torch.cuda.graph(graph, memory, stream, capture_error_mode="thread_local"):
                result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return capture


@contextmanager
def _nothing_freed() -> Iterator[None]:
    """No garbage collection: a graph or pinned memory that it frees would spoil the capture."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def decode_graphs(model: Model, pool: KVPool, wanted: bool, guesses: int = 0) -> DecodeGraphs | None:
    """For a model on a GPU, if it can; the log says so, or why not. `guesses`: of a sequence in a step, at most."""
    if model.device.type != "cuda":
        return None
    reason = obstacle(model) if wanted else "they are turned off"
    if reason is not None:
        log.info("decode steps run without CUDA graphs: %s", reason)
        return None
    log.info("decode steps run as CUDA graphs")
    return DecodeGraphs(model, pool, cuda_capture(model.device), guesses)


def obstacle(model: Model) -> str | None:
    """Why this model's steps cannot be captured; None: they can."""
    if len(model.stages) > 1:
        return "the layers lie on several devices"
    if any(isinstance(layer, FerriedLayer) for layer in model.stages[0].layers):
        return "some layers live in RAM"
    if any(isinstance(block.mlp, spec.SparseMoe) for block in model.spec.blocks):
        return "which experts have work is read on the host"
    backend = model.backend
    borrowed = {op for op in READ_BY_HOST if getattr(backend, op) is getattr(reference, op)}
    if borrowed:
        return f"backend {model.backend.NAME} reads on the host in {' and '.join(sorted(borrowed))}"
    return None
