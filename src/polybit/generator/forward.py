"""A model over its K/V pool: runs of tokens in, logits out. Whose tokens they are is not known here."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from polybit.cache import KVPool
from polybit.generator.graphs import SIZES, DecodeGraphs
from polybit.generator.layout import DecodeLayout, Run, lay_out, wanted_of
from polybit.model.model import Model

CPU = torch.device("cpu")


class Forward:
    """One pass a call. Where there are graphs they take those of next tokens and guesses; others run eagerly."""

    def __init__(self, model: Model, pool: KVPool, graphs: DecodeGraphs | None = None) -> None:
        self.model = model
        self.pool = pool
        self._graphs = graphs
        self._decode_layout = DecodeLayout()

    def __call__(self, runs: Sequence[Run]) -> Tensor:
        """Store the runs' keys and values; [n, V], the logits that they want, good until the next call."""
        if self._graphs is not None and len(runs) <= SIZES[-1]:
            if _is_decode(runs):
                return self._graphs.decode(*self._decode_layout(runs))
            if _is_guessed(runs, self._graphs.max_queries):
                return self._graphs.decode(*lay_out(runs, CPU))
        tokens, step = lay_out(runs, self.model.device)
        logits_at = torch.tensor(wanted_of(runs), dtype=torch.int64, device=self.model.device)
        return self.model.forward(tokens, step, self.pool, logits_at)


def _is_decode(runs: Iterable[Run]) -> bool:
    return all(len(run.tokens) == 1 == run.num_wanted for run in runs)


def _is_guessed(runs: Sequence[Run], max_queries: int) -> bool:
    """Whether all are next tokens with no more guesses behind each than a graph has room for."""
    has_room = sum(len(run.tokens) for run in runs) <= SIZES[-1]
    return has_room and all(len(run.tokens) == run.num_wanted <= max_queries for run in runs)
