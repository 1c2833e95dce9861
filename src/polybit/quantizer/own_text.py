"""Text that the model itself writes, for calibration: passages sampled from its own predictions.

No text at hand resembles what a model was trained on as much as that. It takes the whole model in memory, for a moment.
"""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from polybit.model.model import Model
from polybit.modules.step import Step
from polybit.quantizer.draw import draw
from polybit.quantizer.progress import Advance

AT_ONCE = 64  # passages


class PassageStore:
    """Keys and values of S passages that grow together: a page of `length` tokens each."""

    is_written_by_ops = False

    def __init__(self, length: int) -> None:
        self._length = length
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, k: Tensor, v: Tensor, step: Step) -> None:
        if layer not in self._held:
            shape = (step.page_table.shape[0], self._length, *k.shape[1:])
            self._held[layer] = k.new_zeros(shape), v.new_zeros(shape)
        for held, new in zip(self._held[layer], (k, v), strict=True):
            held.flatten(0, 1)[step.slots] = new

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._held[layer]


def write_text(model: Model, starts: Tensor, length: int, bos: int | None, advance: Advance) -> Tensor:
    """starts [S], the first token of each passage (after BOS) -> [S, length], the passages without BOS.

    Sampled at temperature 1 with a fixed seed: the same passages at every run on the same machine.
    """
    generator, portions = torch.Generator().manual_seed(0), torch.split(starts, AT_ONCE)
    steps, num_steps = count(1), len(portions) * (length - (bos is None))

    def stepped() -> None:
        advance(next(steps), num_steps)

    return torch.cat([_write(model, part, length, bos, generator, stepped) for part in portions])


def _write(
    model: Model,
    starts: Tensor,
    length: int,
    bos: int | None,
    generator: torch.Generator,
    stepped: Callable[[], None],
) -> Tensor:
    given = [starts] if bos is None else [torch.full_like(starts, bos), starts]
    written, capacity = list(given), len(given) - 1 + length
    store = PassageStore(capacity)
    for position in range(capacity - 1):
        step = _step(len(starts), position, capacity, model.device)
        logits = model.forward(written[position].to(model.device), step, store)
        if position + 1 == len(written):
            written.append(_sample(logits, generator))
        stepped()
    return torch.stack(written[-length:], dim=1)


def _step(num_passages: int, position: int, capacity: int, device: torch.device) -> Step:
    passages = torch.arange(num_passages, device=device)
    return Step(
        positions=torch.full_like(passages, position),
        slots=passages * capacity + position,
        page_table=passages[:, None].int(),
        query_starts=torch.arange(num_passages + 1, dtype=torch.int32, device=device),
        lengths=torch.full((num_passages,), position + 1, dtype=torch.int32, device=device),
        max_queries=1,
        max_length=position + 1,
    )


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """[S, V] -> [S] on the CPU"""
    return draw(logits.float().softmax(-1), generator).cpu()
