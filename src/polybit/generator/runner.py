"""One step: a forward pass over parts of several sequences, and what each that is ready for it says next."""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from polybit.cache import Holding, KVPool
from polybit.errors import KernelError, PolybitError
from polybit.generator.diagnosis import first_broken_layer
from polybit.generator.forward import Forward
from polybit.generator.graphs import DecodeGraphs, Launch
from polybit.generator.layout import ids_of, run_of
from polybit.generator.sampling import UNUSABLE, Drawn, sample, unusable
from polybit.generator.sampling.shaping import guided
from polybit.generator.scheduler import Part, Plan
from polybit.generator.sequence import Sequence
from polybit.generator.speculative import Drafter, Outlook, looking_ahead
from polybit.model.model import Model

Said = list[Drawn] | PolybitError  # a token, and one more for each guess that came true; or why there is none


@dataclass(frozen=True)
class Ahead:
    """A plan's next step, should it be carried out once more, each of its sequences having got a token."""

    plan: Plan[Sequence]
    prepared: Launch

    def launch(self) -> Tensor:
        """As `Runner.forward` of the plan's parts."""
        logits = self.prepared(ids_of([part.sequence.tokens[-1] for part in self.plan.parts]))
        for part in self.plan.parts:
            part.sequence.num_stored += 1
        return logits


class Runner:
    """The model and the pool, graphs for steps without prompts where there are any, and who guesses tokens.

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
        self._ahead: Ahead | None = None

    def run(self, plan: Plan[Sequence]) -> list[tuple[Sequence, Said]]:
        """Carry the plan out; what follows in each sequence that is ready for it."""
        if plan.copies:
            self.pool.copy(plan.copies)
        if not (plan.parts or plan.beside):
            return []
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.plan is plan:
            return self._sample(ahead.launch(), plan, [part.sequence for part in plan.parts])
        ready = [part for part in plan.parts if part.is_last]
        if self._drafter is None:
            logits = self.forward(plan.parts + plan.beside)
            return self._sample(logits, plan, [part.sequence for part in ready]) if ready else []
        outlooks = [Outlook(part) for part in ready]
        with looking_ahead(outlooks):
            self._drafter.guess(plan, outlooks)
        logits = self.forward(plan.parts + plan.beside)
        return self._sample_all(logits, outlooks) if ready else []

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
    def _sample(self, logits: Tensor, plan: Plan[Sequence], ready: list[Sequence]) -> list[tuple[Sequence, Said]]:
        """logits [S + companions, V] -> the next token of each, or why there is none."""
        known = _mixed(logits[:, : self._vocab_size], ready, range(len(ready)))
        sampled = sample(known, [sequence.sampling for sequence in ready])
        if (launch := self._forward.look_ahead()) is not None:  # while the device works
            self._ahead = Ahead(plan, launch)
        drawn = sampled.drawn()
        said: list[Said] = [[one] for one in drawn]
        for row, one in enumerate(drawn):
            if one.token == UNUSABLE:
                said[row] = unusable(known[row], len(ready[row].tokens))
        return list(zip(ready, said, strict=True))

    @torch.inference_mode()
    def _sample_all(self, logits: Tensor, outlooks: list[Outlook]) -> list[tuple[Sequence, Said]]:
        """logits [n + companions, V] of all their places -> the next tokens of each, or why there are none."""
        starts = list(accumulate((len(outlook.states) for outlook in outlooks), initial=0))
        known = _mixed(logits[:, : self._vocab_size], [outlook.sequence for outlook in outlooks], starts)
        states = [state for outlook in outlooks for state in outlook.states]
        drawn = sample(known, states, [guess for outlook in outlooks for guess in outlook.all_tried()]).drawn()
        return [
            (outlook.sequence, _said(outlook, known[start:stop], drawn[start:stop]))
            for outlook, start, stop in zip(outlooks, starts, starts[1:], strict=False)
        ]


def _said(outlook: Outlook, logits: Tensor, drawn: list[Drawn]) -> Said:
    """By the logits [1 + guesses, V] of the sequence's places, and what was drawn there."""
    if drawn[0].token == UNUSABLE:
        return unusable(logits[0], len(outlook.sequence.tokens))
    return outlook.come_true(drawn)


def _mixed(logits: Tensor, ready: list[Sequence], starts: Tokens[int]) -> Tensor:
    """logits [n + companions, V], companions last and in the same order -> [n, V], with theirs taken into account.

    `starts`: the first row of each sequence; those with a companion have one.
    """
    rows = [row for row, sequence in enumerate(ready) if sequence.companion is not None]
    if not rows:
        return logits
    own, beside = logits[: -len(rows)], logits[-len(rows) :]
    scale = torch.tensor([ready[row].params.cfg_scale for row in rows], device=logits.device)
    at = torch.tensor([starts[row] for row in rows], device=logits.device)
    return own.index_copy(0, at, guided(own[at], beside, scale))
