"""The whole measurement in its order: ceilings, products checked, loading, memory, decoding, prompts."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from polybit.bench.ceilings import matmul_tflops, read_gb_s
from polybit.bench.check import check_products
from polybit.bench.first_use import FirstUse
from polybit.bench.passes import Batch
from polybit.bench.report import Report, Row, Vram
from polybit.bench.subject import Subject
from polybit.bench.timing import median_seconds, timed
from polybit.bench.work import bits_per_weight, cache_bytes, operations, weight_bytes
from polybit.errors import KernelError, OutOfMemory, RequestError
from polybit.model.device import describe
from polybit.model.footprint import token_bytes
from polybit.model.load import LoadProgress
from polybit.model.model import Model

log = logging.getLogger(__name__)

CACHE_TOKENS = 4096  # when memory is measured


@dataclass(frozen=True)
class Wanted:
    batches: tuple[int, ...]  # sequences that decode together
    contexts: tuple[int, ...]  # tokens that they have seen before
    prompts: tuple[int, ...]  # tokens of a prompt


def measure(
    subject: Subject, wanted: Wanted, first_use: FirstUse | None = None, progress: LoadProgress | None = None
) -> Report:
    """Everything that was wanted and fits. KernelError: a result is wrong, and no figure is given.

    RequestError: a context is longer than the model reaches. OutOfMemory: the model does not fit.
    """
    check_lengths(subject, wanted)
    place = subject.place
    read, multiplied = read_gb_s(place.device), matmul_tflops(place.device, place.dtype)
    log.info("%s reads %.1f GB/s and multiplies %.2f TFLOP/s", describe(place.device), read, multiplied)
    checked = check_products(subject, {1, *wanted.batches, *wanted.prompts})
    log.info("%d kinds of products are right", checked)
    _begin_counting(place.device)
    model, load_s = timed(lambda: subject.build(progress), place.device)
    log.info("loaded in %.1f s", load_s)
    vram = measure_vram(model)
    return Report(
        model=subject.name,
        bpw=bits_per_weight(subject.model, subject.stored_bits),
        backend=place.backend.NAME,
        device=describe(place.device),
        decode=decode_rows(subject, model, wanted, read),
        prefill=prefill_rows(model, wanted, multiplied),
        load_s=load_s,
        vram=vram,
        first_use=first_use,
        read_gb_s=read,
        matmul_tflops=multiplied,
    )


def check_lengths(subject: Subject, wanted: Wanted) -> None:
    longest = max([*(context + 1 for context in wanted.contexts), *wanted.prompts], default=0)
    if longest > subject.model.max_seq_len:
        raise RequestError(
            f"a pass over {longest} tokens is longer than the {subject.model.max_seq_len} that {subject.name} reaches; "
            "ask for fewer with --context or --prefill, or for a larger --max-seq-len"
        )


def _begin_counting(device: torch.device) -> None:
    """Peaks of memory from here on."""
    _release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measure_vram(model: Model) -> Vram | None:
    """After a prompt that fills the cache."""
    if model.device.type != "cuda":
        return None
    weights, tokens = torch.cuda.memory_allocated(model.device), min(CACHE_TOKENS, model.max_seq_len)
    Batch(model, batch=1, length=tokens).step()
    free, total = torch.cuda.mem_get_info(model.device)
    allocated = torch.cuda.max_memory_allocated(model.device)
    return Vram(weights, allocated, torch.cuda.max_memory_reserved(model.device), total - free, tokens)


def decode_rows(subject: Subject, model: Model, wanted: Wanted, read: float) -> tuple[Row, ...]:
    rows = [
        (f"decoding {batch} after {context} tokens", partial(decode_row, subject, model, read, batch, context))
        for context in wanted.contexts
        for batch in wanted.batches
    ]
    return _fitting(rows, model.device)


def prefill_rows(model: Model, wanted: Wanted, multiplied: float) -> tuple[Row, ...]:
    rows = [
        (f"a prompt of {length} tokens", partial(prefill_row, model, multiplied, length)) for length in wanted.prompts
    ]
    return _fitting(rows, model.device)


def decode_row(subject: Subject, model: Model, read: float, batch: int, context: int) -> Row:
    """One token for each of `batch` sequences that have `context` behind them."""
    group = Batch(model, batch, context + 1)
    group.fill()
    _check_finite(group.again(), subject)
    seconds = median_seconds(group.again, model.device)
    held = partial(token_bytes, cache=model.cache, dtype=model.dtype)
    cached = batch * cache_bytes(model.spec, context, held)
    needed = weight_bytes(model.spec, subject.stored_bits, batch) + cached
    return Row(batch, context, batch / seconds, 1e3 * seconds, needed / seconds / 1e9 / read)


def prefill_row(model: Model, multiplied: float, length: int) -> Row:
    """A prompt of `length` tokens and the token after it."""
    seconds = median_seconds(Batch(model, 1, length).again, model.device)
    return Row(1, length, length / seconds, 1e3 * seconds, operations(model.spec, length) / seconds / 1e12 / multiplied)


def _check_finite(logits: Tensor, subject: Subject) -> None:
    if not logits.isfinite().all():
        raise KernelError(
            f"backend {subject.place.backend.NAME}: {subject.name} gives logits that are not finite in "
            f"{subject.place.dtype}; no figures from wrong results: try --dtype bfloat16, or --backend reference"
        )


def _fitting(measurements: Iterable[tuple[str, Callable[[], Row]]], device: torch.device) -> tuple[Row, ...]:
    """The rows of those that the memory has room for; the others are named in the log."""
    rows = list[Row]()
    for what, row in measurements:
        _release(device)
        try:
            rows.append(row())
        except (OutOfMemory, torch.OutOfMemoryError) as error:
            log.warning("left out: %s (%s)", what, str(error).splitlines()[0])
        else:
            log.info("%s: %.2f tokens a second", what, rows[-1].tok_per_s)
    return tuple(rows)


def _release(device: torch.device) -> None:
    """What torch keeps for later goes back, so that what is free can be seen."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
