"""What a self-test found, as data: how far a converted model lies from its source, and whether that is far too much."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from polybit.model.evaluate import Score

# Nats of KL divergence from the source that a conversion may cost. Bad models at two to four bits stay within half of
# it; broken ones, whose predictions have little to do with the source's, lie at two to ten nats.
NATS_AT_TWO_BITS = 8.0
MOST_NATS, FEWEST_NATS = 3.0, 0.25


def allowed_nats(bits: float) -> float:
    """A bit more divides errors by four, between limits: even two bits have to say something, and text is noisy."""
    expected: float = NATS_AT_TWO_BITS * 4.0 ** (2 - bits)
    return min(MOST_NATS, max(FEWEST_NATS, expected))


@dataclass(frozen=True)
class Sample:
    """What the converted model says of itself, always taking the likeliest token."""

    prompt: str
    text: str
    is_chat: bool  # asked through the model's chat template; else continued


@dataclass(frozen=True)
class SelfTest:
    """On text that no calibration holds. Errors are relative, and means over tokens; they may be NaN."""

    score: Score  # of the converted model, compared with the source
    source_perplexity: float
    drift: tuple[float, ...]  # of the states after each layer, the errors of all layers before it included
    matrix_errors: Mapping[str, float]  # by key, of its output for the source's inputs; corrections of others' included
    allowed: float  # nats
    sample: Sample | None  # None: the model does not fit whole

    @property
    def nats(self) -> float:
        """KL divergence from the source; NaN where the model computes none."""
        return math.nan if self.score.kl is None else self.score.kl

    @property
    def worst(self) -> str:
        """The matrix with the largest error; one that is not a number is larger than all."""
        return max(self.matrix_errors, key=lambda key: _sortable(self.matrix_errors[key]))

    @property
    def fault(self) -> str | None:
        """What is wrong, as the end of a sentence about the model; None: it passed."""
        for layer, error in enumerate(self.drift):
            if not math.isfinite(error):
                return f"computes NaN or infinity, first in layer {layer}"
        if not math.isfinite(self.nats):
            return "computes logits that are NaN or infinity"
        if self.nats > self.allowed:
            return f"lies {self.nats:.2f} nats from its source, expected at most {self.allowed:.2f}"
        risen = math.log(self.score.perplexity / self.source_perplexity)
        if risen > self.allowed:
            found, was = self.score.perplexity, self.source_perplexity
            return f"has perplexity {found:.1f}, expected at most {was * math.exp(self.allowed):.1f}"
        return None


def _sortable(error: float) -> float:
    return math.inf if math.isnan(error) else error
