"""A model over its K/V pool: runs of tokens in, logits out. Whose tokens they are is not known here."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from polybit.cache import KVPool
from polybit.generator.graphs import SIZES, DecodeGraphs
from polybit.generator.layout import DecodeLayout, Run, lay_out, wanted_of
from polybit.model.model import Model


class Forward:
    """One pass a call. Where there are graphs they take those of one token a sequence; others run eagerly."""

    def __init__(self, model: Model, pool: KVPool, graphs: DecodeGraphs | None = None) -> None:
        self.model = model
        self.pool = pool
        self._graphs = graphs
        self._decode_layout = DecodeLayout()

    def __call__(self, runs: Sequence[Run]) -> Tensor:
        """Store the runs' keys and values; [n, V], the logits that they want, good until the next call."""
        if self._graphs is not None and len(runs) <= SIZES[-1] and _is_decode(runs):
            return self._graphs.decode(*self._decode_layout(runs))
        tokens, step = lay_out(runs, self.model.device)
        logits_at = torch.tensor(wanted_of(runs), dtype=torch.int64, device=self.model.device)
        return self.model.forward(tokens, step, self.pool, logits_at)


def _is_decode(runs: Iterable[Run]) -> bool:
    return all(len(run.tokens) == 1 == run.num_wanted for run in runs)
