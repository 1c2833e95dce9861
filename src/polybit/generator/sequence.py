"""One request on its way: its tokens, where their keys and values lie, its own randomness, and its text so far."""

import time
from collections.abc import Sequence as Tokens

from polybit.generator.completion import Completion, FinishReason
from polybit.generator.params import SamplingParams
from polybit.generator.sampling import Drawn, Report, SamplingState
from polybit.generator.stopping import HeldText
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
    ) -> None:
        """`ends`: token ids that end it. `room`: tokens that the context leaves for the answer."""
        self.params = params
        self.sampling = sampling or SamplingState(params, prompt)
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.num_stored = 0  # leading tokens whose keys and values are in the pool
        self.pages: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._ends = ends
        self._limit = min(room, params.max_tokens or room)
        self._detokenizer = detokenizer
        self._held = HeldText(params.stop)
        self._text: list[str] = []
        self._stopped_by: int | str | None = None
        self._reports: list[Report] = []
        self._close_too_early()
        self._begun = 0.0
        self._token_times: list[float] = []

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
        """Take the sampled token; returns the text that became certain."""
        token, report = drawn
        self._token_times.append(time.perf_counter())
        self.sampling.accept(token, report)
        if token in self._ends:
            return self._emit(self._finish("stop", token))
        self.tokens.append(token)
        self._close_too_early()
        if report is not None and self.params.logprobs is not None:
            self._reports.append(report)
        text = self._held.feed(self._detokenizer.feed(token))
        if self._held.matched is not None:
            self.finish_reason, self._stopped_by = "stop", self._held.matched
        elif self.num_generated >= self._limit:
            text += self._finish("length", None)
        return self._emit(text)

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
            logprobs=tuple(self._reports),
        )

    def _close_too_early(self) -> None:
        """No end before `min_tokens`."""
        self.sampling.blocked = self._ends if self.num_generated < self.params.min_tokens else ()

    def _finish(self, reason: FinishReason, stopped_by: int | None) -> str:
        """Text that was waiting for more. It may still hold a stop string."""
        self.finish_reason, self._stopped_by = reason, stopped_by
        text = self._held.feed(self._detokenizer.finish())
        if self._held.matched is not None:
            self.finish_reason, self._stopped_by = "stop", self._held.matched
        return text + self._held.finish()

    def _emit(self, text: str) -> str:
        self._text.append(text)
        return text
