"""One step: a forward pass over parts of several sequences, and what each that is ready for it says next."""

from itertools import accumulate

import torch
from torch import Tensor

from polybit.cache import Holding, KVPool
from polybit.errors import KernelError, PolybitError
from polybit.generator.diagnosis import first_broken_layer
from polybit.generator.forward import Forward
from polybit.generator.graphs import DecodeGraphs
from polybit.generator.layout import run_of
from polybit.generator.sampling import UNUSABLE, Drawn, sample, unusable
from polybit.generator.sampling.shaping import guided
from polybit.generator.scheduler import Part, Plan
from polybit.generator.sequence import Sequence
from polybit.generator.speculative import Drafter, Outlook, looking_ahead
from polybit.model.model import Model

Said = list[Drawn] | PolybitError  # a token, and one more for each guess that came true; or why there is none


class Runner:
    """The model and the pool, graphs for steps of one token a sequence where there are any, and who guesses tokens.

    `vocab_size`: ids from here on are padding of the model's matrices and never sampled.
    """

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        vocab_size: int,
        graphs: DecodeGraphs | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self._vocab_size = vocab_size
        self._forward = Forward(model, pool, graphs)
        self._drafter = drafter

    def run(self, plan: Plan[Sequence]) -> list[tuple[Sequence, Said]]:
        """Carry the plan out; what follows in each sequence that is ready for it."""
        if plan.copies:
            self.pool.copy(plan.copies)
        if not (plan.parts or plan.beside):
            return []
        ready = [Outlook(part) for part in plan.parts if part.is_last]
        if self._drafter is not None:
            with looking_ahead(ready):
                self._drafter.guess(plan, ready)
        logits = self.forward(plan.parts + plan.beside)
        return self.sample(logits, ready) if ready else []

    def forward(self, parts: tuple[Part[Holding], ...]) -> Tensor:
        """Store the parts' keys and values in pages that the sequences have.

        [n, V]: the logits after each part that is a last one, and after each of its guesses; good until the next call.
        """
        logits = self._forward([run_of(part) for part in parts])
        for part in parts:
            part.sequence.num_stored += part.count
        return logits

    def explained(self, error: PolybitError, sequence: Sequence) -> PolybitError:
        """`error`, and which layer it comes from where logits are no numbers."""
        layer = first_broken_layer(self.model, sequence.tokens) if isinstance(error, KernelError) else None
        return error if layer is None else KernelError(f"{error}; the first numbers that are not finite leave {layer}")

    @torch.inference_mode()
    def sample(self, logits: Tensor, ready: list[Outlook]) -> list[tuple[Sequence, Said]]:
        """logits [n + companions, V] of all their places -> the next tokens of each, or why there are none."""
        known = _mixed(logits[:, : self._vocab_size], ready)
        states = [state for outlook in ready for state in outlook.states]
        guesses = () if self._drafter is None else [guess for outlook in ready for guess in outlook.all_tried()]
        drawn = sample(known, states, guesses).drawn()
        if len(drawn) == len(ready):  # nearly always
            return [(ready[row].sequence, _said(ready[row], known, row, [one])) for row, one in enumerate(drawn)]
        starts = accumulate((len(outlook.states) for outlook in ready), initial=0)
        return [
            (outlook.sequence, _said(outlook, known, start, drawn[start : start + len(outlook.states)]))
            for start, outlook in zip(starts, ready, strict=False)
        ]


def _said(outlook: Outlook, logits: Tensor, row: int, drawn: list[Drawn]) -> Said:
    """By what was drawn in the sequence's places, the first of which is `row` of logits [n, V]."""
    if drawn[0].token == UNUSABLE:
        return unusable(logits[row], len(outlook.sequence.tokens))
    return outlook.come_true(drawn) if outlook.guesses else drawn


def _mixed(logits: Tensor, ready: list[Outlook]) -> Tensor:
    """logits [n + companions, V], companions last and in the same order -> [n, V], with theirs taken into account."""
    stops = list(accumulate(len(outlook.states) for outlook in ready))
    own, beside = logits[: stops[-1]], logits[stops[-1] :]
    if not len(beside):
        return own
    rows = [row for row, outlook in enumerate(ready) if outlook.sequence.companion is not None]
    scale = torch.tensor([ready[row].sequence.params.cfg_scale for row in rows], device=logits.device)
    at = torch.tensor([stops[row] - 1 for row in rows], device=logits.device)  # they have no guesses
    return own.index_copy(0, at, guided(own[at], beside, scale))
