"""One request on its way: its tokens and pages, its own randomness, its text so far, and how it ended."""

import time
from collections.abc import Iterable
from collections.abc import Sequence as Tokens

from polybit.cache import Holding
from polybit.errors import PolybitError
from polybit.generator.completion import Completion
from polybit.generator.filters import Filter
from polybit.generator.own_code import OwnFilter, Revise
from polybit.generator.params import SamplingParams
from polybit.generator.sampling import Drawn, Report, SamplingState
from polybit.generator.sampling.mask import TokenMask
from polybit.generator.text_control import FinishReason, Limits, TextControl
from polybit.text import Detokenizer


class Sequence(Holding):
    """Grows by `accept`; ends by a token that sets `finish_reason`, by an `error`, or because nobody wants it."""

    def __init__(
        self,
        prompt: Tokens[int],
        params: SamplingParams,
        ends: frozenset[int],
        detokenizer: Detokenizer,
        room: int,
        sampling: SamplingState | None = None,
        filter_: Filter | None = None,
        first: TokenMask | None = None,
        revise: Revise | None = None,
    ) -> None:
        """`ends`: token ids that end it. `room`: tokens that the context leaves for the answer. `filter_`: what its
        tokens may be. `first`: what its first one may be, which writes part of the prompt again and does not count.
        `revise`: has the last word on each token.
        """
        super().__init__(prompt)
        self.params = params
        self.sampling = sampling or SamplingState(params, prompt)
        self.num_prompt = len(prompt)
        self.finish_reason: FinishReason | None = None
        self.error: PolybitError | None = None
        self.is_cancelled = False
        self.num_guessed = self.num_accepted = 0  # tokens that were tried out, and those of them that came true
        most = min(room, params.max_tokens or room) + (first is not None)
        limits = Limits(ends, most, params.min_tokens)
        self._control = TextControl(detokenizer, limits, params.stop, params.banned_strings, filter_, first)
        self._revise = revise
        self._is_guessable = params.mirostat_tau == 0 and revise is None and not isinstance(filter_, OwnFilter)
        self._suppressed: list[str] = []
        self._suppressed_tokens: list[int] = []
        self._reports: list[Report] = []
        self._stopped_by: int | str | None = None
        self._is_blocked = False  # beyond what text control says
        self._num_cached = 0
        self._requested, self._begun = time.perf_counter(), 0.0
        self._first_token = self._last_token = 0.0  # when they came
        if self._control.restricts:
            self._restrict()

    @property
    def pieces(self) -> list[str]:
        """Of its text, as they became certain; some are empty."""
        return self._control.pieces

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None or self.is_cancelled

    @property
    def has_begun(self) -> bool:
        return self._begun > 0

    @property
    def num_guessable(self) -> int:
        """None where something is known only when a token is there, or is the request's own code."""
        is_open = self._is_guessable and self.companion is None and not self._is_blocked
        return max(0, self._control.num_left - 1) if is_open else 0

    def begin(self) -> None:
        """Start the clock of its first step."""
        if not self._begun:
            self._begun = time.perf_counter()

    def accept_all(self, drawn: Tokens[Drawn]) -> None:
        """`accept` the next token, and those that follow from guesses that came true, as long as they do follow."""
        length = len(self.tokens)
        self.accept(drawn[0])
        if len(drawn) == 1:  # nearly always
            return
        for i, one in enumerate(drawn[1:], 1):
            if self.has_ended or len(self.tokens) != length + i:  # else it was taken back
                return
            self.num_stored += 1  # the token before this one was a guess
            self.num_accepted += 1
            self.accept(one)

    def accept(self, drawn: Drawn) -> None:
        """Take the sampled token. A banned text takes tokens back instead.

        Raises RequestError where a grammar cannot be followed any further, or the request's own code fails.
        """
        token, report = drawn if self._revise is None else (self._revise(drawn), drawn.report)
        self._last_token = time.perf_counter()
        if not self._first_token:
            self._first_token, self._num_cached = self._last_token, self.num_reused
        self.sampling.accept(token, report)
        verdict = self._control.feed(token)
        if verdict.taken_back == 0:
            self.tokens.append(token)
            if self.companion is not None:
                self.companion.tokens.append(token)
            if report is not None and self.params.is_reported:
                self._reports.append(report)
        elif verdict.suppressed is not None:
            self._suppressed.append(verdict.suppressed)
            self._suppressed_tokens += [*self.tokens[len(self.tokens) - verdict.taken_back + 1 :], token]
            self._rewind(verdict.taken_back - 1)
        if verdict.finish_reason is not None:
            self.finish_reason, self._stopped_by = verdict.finish_reason, verdict.stopped_by
        elif self._control.restricts or self._is_blocked:
            self._restrict()

    def foresee(self, token: int, state: SamplingState) -> SamplingState | None:
        """Look on as if `token` had come, which `state` samples: what the next one is sampled with.

        None where it cannot come there, or would be the last.
        """
        if not state.admits(token) or not self._control.foresee(token):
            return None
        later = state.ahead([token])
        if self._control.restricts:
            later.blocked, later.allowed = self._control.blocked, self._control.allowed()
        return later

    def look_back(self) -> None:
        """Forget what was foreseen."""
        self._control.look_back()

    def completion(self) -> Completion:
        """What came out so far."""
        return Completion(
            text="".join(self.pieces),
            tokens=tuple(self.tokens[self.num_prompt :]),
            finish_reason=self.finish_reason,
            stopped_by=self._stopped_by,
            prompt_tokens=self.num_prompt,
            cached_tokens=self._num_cached,
            queued_seconds=self._begun - self._requested if self._begun else 0.0,
            prefill_seconds=self._first_token - self._begun if self._first_token else 0.0,
            decode_seconds=self._last_token - self._first_token,
            num_held=self._control.num_held,
            suppressed=tuple(self._suppressed),
            suppressed_tokens=tuple(self._suppressed_tokens),
            logprobs=tuple(self._reports),
            accepted_draft_tokens=self.num_accepted,
            rejected_draft_tokens=self.num_guessed - self.num_accepted,
        )

    def _rewind(self, count: int) -> None:
        """The last `count` tokens go, besides the one just drawn."""
        self.take_back(count)
        del self._reports[max(0, len(self._reports) - count) :]
        self.sampling.rewind(count + 1)

    def block(self, tokens: Iterable[int]) -> None:
        """The next token, whenever it comes, is none of these either."""
        self.sampling.blocked = frozenset(self.sampling.blocked).union(tokens)
        self._is_blocked = True

    def _restrict(self) -> None:
        """What the next token may be."""
        self._is_blocked = False
        self.sampling.blocked, self.sampling.allowed = self._control.blocked, self._control.allowed()
