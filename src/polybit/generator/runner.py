"""One forward pass over parts of several sequences, and one token for each that is ready for it."""

from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor

from polybit.cache import Holding, KVPool
from polybit.errors import KernelError, PolybitError
from polybit.generator.diagnosis import first_broken_layer
from polybit.generator.graphs import SIZES, DecodeGraphs
from polybit.generator.layout import DecodeLayout, lay_out
from polybit.generator.sampling import UNUSABLE, Drawn, sample, unusable
from polybit.generator.sampling.shaping import guided
from polybit.generator.scheduler import Part, Plan
from polybit.generator.sequence import Sequence
from polybit.model.model import Model


class Runner:
    """The model and the pool, and graphs for steps of one token a sequence where there are any.

    `vocab_size`: ids from here on are padding of the model's matrices and never sampled.
    """

    def __init__(self, model: Model, pool: KVPool, vocab_size: int, graphs: DecodeGraphs | None = None) -> None:
        self.model = model
        self.pool = pool
        self._vocab_size = vocab_size
        self._graphs = graphs
        self._decode_layout = DecodeLayout()

    def run(self, plan: Plan[Sequence]) -> list[tuple[Sequence, Drawn | PolybitError]]:
        """Carry the plan out; the next token of each sequence that is ready for it, or why there is none."""
        if plan.copies:
            self.pool.copy(plan.copies)
        if not (plan.parts or plan.beside):
            return []
        ready = [part.sequence for part in plan.parts if part.is_last]
        logits = self.forward(plan.parts + plan.beside)
        return list(zip(ready, self.sample(logits, ready), strict=True)) if ready else []

    def forward(self, parts: tuple[Part[Holding], ...]) -> Tensor:
        """Store the parts' keys and values in pages that the sequences have; [n, V] after each part that is a last one.

        The logits are good until the next call.
        """
        logits = self._logits(parts)
        for part in parts:
            part.sequence.num_stored += part.count
        return logits

    def _logits(self, parts: tuple[Part[Holding], ...]) -> Tensor:
        if self._graphs is not None and len(parts) <= SIZES[-1] and _is_decode(parts):
            return self._graphs.decode(*self._decode_layout([part.sequence for part in parts]))
        tokens, step = lay_out(parts, self.model.device)
        stops = accumulate(part.count for part in parts)
        ends = [stop - 1 for stop, part in zip(stops, parts, strict=True) if part.is_last]
        logits_at = torch.tensor(ends, dtype=torch.int64, device=self.model.device)
        return self.model.forward(tokens, step, self.pool, logits_at)

    def explained(self, error: PolybitError, sequence: Sequence) -> PolybitError:
        """`error`, and which layer it comes from where logits are no numbers."""
        layer = first_broken_layer(self.model, sequence.tokens) if isinstance(error, KernelError) else None
        return error if layer is None else KernelError(f"{error}; the first numbers that are not finite leave {layer}")

    @torch.inference_mode()
    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Drawn | PolybitError]:
        """logits [S + companions, V] -> the next token of each, or the error of those that cannot have one."""
        known = _mixed(logits[:, : self._vocab_size], sequences)
        drawn = sample(known, [sequence.sampling for sequence in sequences]).drawn()
        return [
            unusable(known[row], len(sequences[row].tokens)) if one.token == UNUSABLE else one
            for row, one in enumerate(drawn)
        ]


def _mixed(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """logits [S + companions, V], companions last and in the same order -> [S, V], with theirs taken into account."""
    own, beside = logits[: len(sequences)], logits[len(sequences) :]
    if not len(beside):
        return own
    rows = [row for row, sequence in enumerate(sequences) if sequence.companion is not None]
    scale = torch.tensor([sequences[row].params.cfg_scale for row in rows], device=logits.device)
    at = torch.tensor(rows, device=logits.device)
    return own.index_copy(0, at, guided(own[at], beside, scale))


def _is_decode(parts: Iterable[Part[Holding]]) -> bool:
    """Whether every sequence has one token left, from which its next one follows."""
    return all(part.count == 1 == part.sequence.num_pending for part in parts)
