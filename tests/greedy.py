"""Greedy tokens of one device against another's logits, with an honest word for near-ties.

Two devices round differently, and where two tokens are almost equally likely either may win; from there on the texts
part for good. So tokens are not compared with tokens: the reference reads what the device said, and every token must
be the one that the reference itself would have taken there, or no less likely than it by TIE. TIE follows from the
table of tolerances: logits that are off by the tolerance move two of them against each other by no more than that.
Where no token is a near-tie, both devices say the same from beginning to end.
"""

import torch
from torch import Tensor

from closeness import tolerance

TIE = 4.0  # times the tolerance, relative to the root mean square of a token's logits


def near_ties(tokens: list[int], logits: Tensor, dtype: torch.dtype) -> int:
    """How many of `tokens` are not the likeliest of the reference's `logits` [n, V] before each; none may be a miss."""
    logits = logits.double().cpu()
    taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    behind = logits.amax(1) - taken
    allowed = TIE * tolerance("model", dtype) * logits.square().mean(1).sqrt()
    worst = int((behind - allowed).argmax())
    assert behind[worst] <= allowed[worst], (
        f"token {worst} of {len(tokens)} is {tokens[worst]}, whose logit is {behind[worst]:.3g} below that of "
        f"{int(logits[worst].argmax())}, which the reference takes; a near-tie would be within {allowed[worst]:.2g}"
    )
    return int((behind > 0).sum())
