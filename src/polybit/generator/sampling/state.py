"""What sampling knows of one request: what it wants, its text, its random numbers, and what it may not say now."""

import copy
import random
from collections.abc import Collection, Sequence

from polybit.generator.params import SamplingParams
from polybit.generator.sampling.history import History, changes
from polybit.generator.sampling.mask import TokenMask, holds
from polybit.generator.sampling.randomness import GUESSES, NUMBERS_A_TOKEN
from polybit.generator.sampling.report import Report
from polybit.generator.sampling.steps import num_candidates, steps_of
from polybit.generator.sampling.truncation import next_bound


class SamplingState:
    """One for each request: `accept` each token that its text gets, `rewind` where text is taken back.

    `blocked` and `allowed` are what the next token is not, and the only ones it may be; whoever controls the text
    sets them before each step.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        breakers: frozenset[int] = frozenset(),
        spared: TokenMask | None = None,
    ) -> None:
        """`breakers`: tokens across which DRY sees no repetition. `spared`: those that XTC leaves alone."""
        self.params = params
        self.steps = steps_of(params)
        self.is_greedy = params.is_greedy
        self.is_free = params.seed is None and not self.is_greedy  # nobody can tell which numbers draw its tokens
        self.is_reported = params.is_reported or params.mirostat_tau > 0
        self.num_candidates = num_candidates(params)
        names = " ".join(step.name for step in self.steps)
        self.kind = f"{self.is_greedy} {self.num_candidates} {names}"  # rows of one go together
        self.constants = [float(getattr(params, name)) for step in self.steps for name in step.fields]
        self.breakers = breakers
        self.spared = spared
        self.bias = changes(params.logit_bias)
        self.blocked: Collection[int] = ()
        self.allowed: TokenMask | None = None
        self.bound = 2 * params.mirostat_tau if params.mirostat_mu is None else params.mirostat_mu  # in bits
        self.history = History(prompt)
        self.key = random.getrandbits(63) if params.seed is None else params.seed
        self._num_drawn = 0

    def count(self, purpose: int) -> int:
        """Which number of its stream is the next token's own."""
        return self._num_drawn * NUMBERS_A_TOKEN + purpose

    @property
    def guess_key(self) -> int:
        """The stream of what is guessed to be the next token."""
        return self.key ^ GUESSES

    def accept(self, token: int, report: Report | None = None) -> None:
        """The token that was drawn, and what `sample` reported of it, if it did."""
        self._num_drawn += 1
        self.history.append(token)
        if report is not None and report.surprise is not None:
            self.bound = next_bound(self.bound, report.surprise, self.params.mirostat_tau, self.params.mirostat_eta)

    def rewind(self, num_tokens: int) -> None:
        """Forget the last tokens of the text. Their random numbers do not come again."""
        self.history.truncate(len(self.history) - num_tokens)

    def admits(self, token: int) -> bool:
        """Whether the next token may be this one."""
        return token not in self.blocked and (self.allowed is None or holds(self.allowed, token))

    def ahead(self, tokens: Sequence[int]) -> "SamplingState":
        """A copy that has accepted `tokens` too; of the text it has only what its samplers read."""
        later = copy.copy(self)
        later.history = self.history.copy() if self.params.reads_text else History(())
        for token in tokens:
            later.accept(token)
        return later
