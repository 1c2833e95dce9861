"""One request on its way: its tokens and pages, its own randomness, its text so far, and how it ended."""

import random
import time
from collections.abc import Sequence as Tokens

from polybit.cache import Holding
from polybit.errors import PolybitError
from polybit.generator.completion import Completion, FinishReason
from polybit.generator.params import SamplingParams
from polybit.generator.stopping import HeldText
from polybit.text import Detokenizer


class Sequence(Holding):
    """Grows by `accept`; ends by a token that sets `finish_reason`, by an `error`, or because nobody wants it."""

    def __init__(
        self, prompt: Tokens[int], params: SamplingParams, ends: frozenset[int], detokenizer: Detokenizer, room: int
    ) -> None:
        """`ends`: token ids that end it. `room`: tokens that the context leaves for the answer."""
        super().__init__(prompt)
        self.params = params
        self.num_prompt = len(prompt)
        self.pieces: list[str] = []  # of its text, as they became certain; some are empty
        self.finish_reason: FinishReason | None = None
        self.error: PolybitError | None = None
        self.is_cancelled = False
        self._ends = ends
        self._limit = min(room, params.max_tokens or room)
        self._detokenizer = detokenizer
        self._held = HeldText(params.stop)
        self._stopped_by: int | str | None = None
        self._random = random.Random(params.seed)
        self._num_cached = 0
        self._requested, self._begun = time.perf_counter(), 0.0
        self._token_times: list[float] = []

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None or self.is_cancelled

    @property
    def has_begun(self) -> bool:
        return self._begun > 0

    def begin(self) -> None:
        """Start the clock of its first step."""
        if not self._begun:
            self._begun = time.perf_counter()

    def uniform(self) -> float:
        """The next number of [0, 1); of 24 bits, so that fp32 never rounds it up to 1."""
        return self._random.getrandbits(24) / (1 << 24)

    def accept(self, token: int) -> str:
        """Take the sampled token; returns the text that became certain."""
        if not self._token_times:
            self._num_cached = self.num_reused
        self._token_times.append(time.perf_counter())
        if token in self._ends:
            return self._emit(self._finish("stop", token))
        self.tokens.append(token)
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
            text="".join(self.pieces),
            tokens=tuple(self.tokens[self.num_prompt :]),
            finish_reason=self.finish_reason,
            stopped_by=self._stopped_by,
            prompt_tokens=self.num_prompt,
            cached_tokens=self._num_cached,
            queued_seconds=self._begun - self._requested if self._begun else 0.0,
            prefill_seconds=times[0] - self._begun if times else 0.0,
            decode_seconds=times[-1] - times[0] if times else 0.0,
        )

    def _finish(self, reason: FinishReason, stopped_by: int | None) -> str:
        """Text that was waiting for more. It may still hold a stop string."""
        self.finish_reason, self._stopped_by = reason, stopped_by
        text = self._held.feed(self._detokenizer.finish())
        if self._held.matched is not None:
            self.finish_reason, self._stopped_by = "stop", self._held.matched
        return text + self._held.finish()

    def _emit(self, text: str) -> str:
        self.pieces.append(text)
        return text
