"""A model over its K/V pool: runs of tokens in, logits out. Whose tokens they are is not known here."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from polybit.cache import KVPool
from polybit.generator.graphs import SIZES, DecodeGraphs, Launch
from polybit.generator.layout import DecodeLayout, Run, ids_of, lay_out, onward, wanted_of
from polybit.model.model import Model
from polybit.modules.step import Step

CPU = torch.device("cpu")


class Forward:
    """One pass a call. Where there are graphs they take those of next tokens and guesses; others run eagerly."""

    def __init__(self, model: Model, pool: KVPool, graphs: DecodeGraphs | None = None) -> None:
        self.model = model
        self.pool = pool
        self._graphs = graphs
        self._decode_layout = DecodeLayout()
        self._decoded: Step | None = None  # the last pass, where it was one of next tokens

    def __call__(self, runs: Sequence[Run]) -> Tensor:
        """Store the runs' keys and values; [n, V], the logits that they want, good until the next call."""
        self._decoded = None
        if _is_decode(runs):
            self._decoded = self._decode_layout(runs)
            return self._prepare(self._decoded)(ids_of([run.tokens[0] for run in runs]))
        if self._graphs is not None and _is_guessed(runs, self._graphs.max_queries):
            tokens, step = lay_out(runs, CPU)
            return self._graphs.prepare(step)(tokens)
        tokens, step = lay_out(runs, self.model.device)
        logits_at = torch.tensor(wanted_of(runs), dtype=torch.int64, device=self.model.device)
        return self.model.forward(tokens, step, self.pool, logits_at)

    def look_ahead(self) -> Launch | None:
        """The pass after one of next tokens: ready but for the tokens, while the device may still be busy.

        None where that pass was another, or where a sequence comes to a new page.
        """
        if self._decoded is None or (step := onward(self._decoded)) is None:
            return None
        self._decoded = step
        return self._prepare(step)

    def _prepare(self, step: Step) -> Launch:
        """`step`: of a token for each sequence, on the CPU."""
        if self._graphs is not None and step.num_tokens <= SIZES[-1]:
            return self._graphs.prepare(step)
        device = self.model.device
        placed, every = step.to(device), torch.arange(step.num_tokens, device=device)
        return lambda tokens: self.model.forward(tokens.to(device), placed, self.pool, every)


def _is_decode(runs: Iterable[Run]) -> bool:
    return all(len(run.tokens) == 1 == run.num_wanted for run in runs)


def _is_guessed(runs: Sequence[Run], max_queries: int) -> bool:
    """Whether all are next tokens with no more guesses behind each than a graph has room for."""
    has_room = sum(len(run.tokens) for run in runs) <= SIZES[-1]
    return has_room and all(len(run.tokens) == run.num_wanted <= max_queries for run in runs)
