"""Decode steps as CUDA graphs: all launches of a step at once, captured at the first use of each batch size.

A graph runs the same kernels over the same memory each time. So a step's numbers are copied to a place of their own,
and a batch is filled up to the next size by sequences of one token, which lie in the pool's spare page.
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

SIZES = (1, 2, 4, 8, 16, 32, 64)  # sequences of a captured step
READ_BY_HOST = frozenset({"attention", "matmul"})  # ops whose reference reads device tensors: lengths, group layouts

Work = Callable[[], Tensor]  # its result may lie in the same memory each time
Capture = Callable[[Work], Work]


class DecodeGraphs:
    """Steps of one token for each of up to SIZES[-1] sequences of a pool."""

    def __init__(self, model: Model, pool: KVPool, capture: Capture) -> None:
        self._model = model
        self._pool = pool
        self._capture = capture
        self._context = min(model.max_seq_len, pool.num_tokens)
        self._ropes = [stage.ropes.reserve(self._context) for stage in model.stages]  # kept, as graphs read them
        self._steps: dict[int, CapturedStep] = {}

    @torch.inference_mode()
    def decode(self, tokens: Tensor, step: Step) -> Tensor:
        """tokens [S] and their step, all on the CPU -> logits [S, V] fp32, good until the next call."""
        size = next(size for size in SIZES if size >= step.num_tokens)
        if size not in self._steps:
            self._steps[size] = CapturedStep(*self._idle(size), self._model, self._pool, self._capture)
        return self._steps[size](tokens, step)

    def _idle(self, size: int) -> tuple[Tensor, Step]:
        """A batch of nothing but sequences that fill it up."""
        spare, num_pages = self._pool.spare_page, pages_for(self._context)
        step = Step(
            positions=torch.zeros(size, dtype=torch.int64),
            slots=torch.full((size,), spare * PAGE_TOKENS),
            page_table=torch.full((size, num_pages), spare, dtype=torch.int32),
            query_starts=torch.arange(size + 1, dtype=torch.int32),
            lengths=torch.ones(size, dtype=torch.int32),
            max_queries=1,
            max_length=self._context,
        )
        return torch.zeros(size, dtype=torch.int64), step


class CapturedStep:
    """The decode step of one batch size: what it reads on the device, the same on the host, and its replay."""

    def __init__(self, tokens: Tensor, step: Step, model: Model, pool: KVPool, capture: Capture) -> None:
        """`tokens` and `step`: an idle batch, from which the places of a smaller one remain."""
        batch, self._idle = gather((tokens, step), lambda num_bytes: torch.zeros(num_bytes, dtype=torch.uint8))
        self._on_host = self._idle.clone()
        self._on_device = self._idle.to(model.device, copy=True)
        self._tokens, self._step = over(batch, self._on_host)
        device_tokens, device_step = over(batch, self._on_device)
        self._replay = capture(lambda: model.forward(device_tokens, device_step, pool))

    def __call__(self, tokens: Tensor, step: Step) -> Tensor:
        self._fill(tokens, step)
        # Pinned anew each time: torch hands such memory out again only when copies from it are done.
        source = self._on_host.pin_memory() if self._on_device.is_cuda else self._on_host
        self._on_device.copy_(source, non_blocking=True)
        return self._replay()[: step.num_tokens]

    def _fill(self, tokens: Tensor, step: Step) -> None:
        self._on_host.copy_(self._idle)
        count, num_pages = step.page_table.shape
        self._tokens[:count] = tokens
        self._step.positions[:count] = step.positions
        self._step.slots[:count] = step.slots
        self._step.lengths[:count] = step.lengths
        self._step.page_table[:count, :num_pages] = step.page_table


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


def decode_graphs(model: Model, pool: KVPool, wanted: bool) -> DecodeGraphs | None:
    """For a model on a GPU, if it can; the log says so, or why not."""
    if model.device.type != "cuda":
        return None
    reason = obstacle(model) if wanted else "they are turned off"
    if reason is not None:
        log.info("decode steps run without CUDA graphs: %s", reason)
        return None
    log.info("decode steps run as CUDA graphs")
    return DecodeGraphs(model, pool, cuda_capture(model.device))


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
