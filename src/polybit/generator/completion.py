"""What comes back from a generation."""

from dataclasses import dataclass

from polybit.generator.sampling import Report
from polybit.generator.text_control import FinishReason


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str  # without the prompt, without what stopped it
    tokens: tuple[int, ...]  # without the stop token
    finish_reason: FinishReason | None  # "length": max_tokens reached or the context full; None: cut off
    stopped_by: int | str | None  # the stop token or string; None with "stop": what was asked for is complete
    prompt_tokens: int
    cached_tokens: int  # of the prompt, which others had read before
    queued_seconds: float  # from the request to the start
    prefill_seconds: float  # from the start to the first token
    decode_seconds: float  # from the first token to the last
    num_held: int = 0  # latest tokens that may still be taken back
    suppressed: tuple[str, ...] = ()  # banned texts, as the model wrote them before they were taken back
    suppressed_tokens: tuple[int, ...] = ()  # all that were taken back
    logprobs: tuple[Report, ...] = ()  # of each token, where SamplingParams asks for them
    accepted_draft_tokens: int = 0  # of speculative decoding: guesses that were right
    rejected_draft_tokens: int = 0  # and those that were not

    @property
    def draft_acceptance(self) -> float:
        """Share of the guesses that were right; 0 where there were none."""
        return self.accepted_draft_tokens / max(1, self.accepted_draft_tokens + self.rejected_draft_tokens)

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second; 0 where nothing was measured."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first; 0 where there is only one."""
        return max(0, len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0
