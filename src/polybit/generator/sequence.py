"""One request on its way: its tokens, where their keys and values lie, its own randomness, and its text so far."""

import time
from collections.abc import Sequence as Tokens

from polybit.generator.completion import Completion
from polybit.generator.filters import Filter
from polybit.generator.params import SamplingParams
from polybit.generator.sampling import Drawn, Report, SamplingState
from polybit.generator.sampling.mask import TokenMask
from polybit.generator.text_control import FinishReason, Limits, TextControl
from polybit.text import Detokenizer


class Sequence:
    """Grows by `accept`; `finish_reason` is set by the token that ends it."""

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
    ) -> None:
        """`ends`: token ids that end it. `room`: tokens that the context leaves for the answer. `filter_`: what its
        tokens may be. `first`: what its first one may be, which writes part of the prompt again and does not count.
        """
        self.params = params
        self.sampling = sampling or SamplingState(params, prompt)
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.num_stored = 0  # leading tokens whose keys and values are in the pool
        self.pages: list[int] = []
        self.finish_reason: FinishReason | None = None
        most = min(room, params.max_tokens or room) + (first is not None)
        limits = Limits(ends, most, params.min_tokens)
        self._control = TextControl(detokenizer, limits, params.stop, params.banned_strings, filter_, first)
        self._text: list[str] = []
        self._suppressed: list[str] = []
        self._reports: list[Report] = []
        self._stopped_by: int | str | None = None
        self._begun = 0.0
        self._token_times: list[float] = []
        self._restrict()

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen."""
        return len(self.tokens) - self.num_stored

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    def begin(self) -> None:
        """Start its clock."""
        self._begun = time.perf_counter()

    def accept(self, drawn: Drawn) -> str:
        """Take the sampled token; returns the text that became certain. A banned text takes tokens back instead."""
        token, report = drawn
        self._token_times.append(time.perf_counter())
        self.sampling.accept(token, report)
        self.tokens.append(token)
        if report is not None and self.params.logprobs is not None:
            self._reports.append(report)
        verdict = self._control.feed(token)
        if verdict.taken_back:
            self._take_back(verdict.taken_back)
        if verdict.suppressed is not None:
            self._suppressed.append(verdict.suppressed)
        self.finish_reason, self._stopped_by = verdict.finish_reason, verdict.stopped_by
        if self.finish_reason is None:
            self.num_stored = min(
                self.num_stored, len(self.tokens) - 1
            )  # the last token runs: the next follows from it
            self._restrict()
        self._text.append(verdict.text)
        return verdict.text

    def completion(self) -> Completion:
        """What came out so far."""
        times = self._token_times
        return Completion(
            text="".join(self._text),
            tokens=tuple(self.tokens[self.num_prompt :]),
            finish_reason=self.finish_reason,
            stopped_by=self._stopped_by,
            prompt_tokens=self.num_prompt,
            prefill_seconds=times[0] - self._begun if times else 0.0,
            decode_seconds=times[-1] - times[0] if times else 0.0,
            suppressed=tuple(self._suppressed),
            logprobs=tuple(self._reports),
        )

    def _take_back(self, count: int) -> None:
        del self.tokens[len(self.tokens) - count :]
        del self._reports[max(0, len(self._reports) - count) :]
        self.sampling.rewind(count)

    def _restrict(self) -> None:
        self.sampling.blocked, self.sampling.allowed = self._control.blocked, self._control.allowed()
