"""What all filters of one text say together, as a filter of polybit's."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from exllamav2.generator.filters import ExLlamaV2Filter
from polybit.errors import RequestError
from polybit.generator.sampling.mask import TokenMask, mask_of


class Together:
    """Tokens that all of `filters` allow; the end after a token that one of them ends with."""

    def __init__(self, filters: Iterable[ExLlamaV2Filter], vocab_size: int, preferred: int | None = None) -> None:
        """`preferred`: the token that comes as soon as it may."""
        self._filters = list(filters)
        self._vocab_size = vocab_size
        self._preferred = preferred
        self._ends = frozenset[int]()
        self.feeds_next = True  # whether the next token is told to the filters
        self.is_done = False

    def begin(self) -> None:
        for each in self._filters:
            each.begin("")

    def allowed(self) -> TokenMask | None:
        found: TokenMask | None = None
        self._ends = frozenset()
        for each in self._filters:
            found = both(found, self._masked_by(each) if each.can_mask_logits() else self._named_by(each))
        preferred = mask_of(() if self._preferred is None else (self._preferred,), self._vocab_size)
        return preferred if found is not None and (found & preferred).any() else found

    def _named_by(self, one: ExLlamaV2Filter) -> TokenMask | None:
        allowed, ends = one.next()
        self._ends |= frozenset(map(int, ends or ()))
        return None if allowed is None else mask_of(map(int, allowed), self._vocab_size)

    def _masked_by(self, one: ExLlamaV2Filter) -> TokenMask:
        one.prepare_logit_mask()
        masked = one.mask_logits(torch.zeros(1, self._vocab_size)).flatten()
        dropped = masked == -math.inf
        if bool((masked[~dropped] != 0).any()):
            raise RequestError(f"{type(one).__name__}.mask_logits changes logits to other than -inf; use token_bias")
        return mask_of((~dropped).nonzero().flatten().tolist(), self._vocab_size)

    def accept(self, token: int) -> None:
        self.is_done = token in self._ends
        if self.feeds_next:
            self.feed(torch.tensor([[token]]))
        self.feeds_next = True

    def feed(self, token: Tensor) -> None:
        for each in self._filters:
            each.feed(token)

    def ends_with(self, token: int) -> bool:
        """Whether the text has ended after one of the tokens that are allowed now."""
        return token in self._ends

    def rewind(self, num_tokens: int) -> None:
        raise RequestError("banned_strings take tokens back, which filters cannot; leave one of them out")


def both(first: TokenMask | None, second: TokenMask | None) -> TokenMask | None:
    """Tokens of both masks; None is all there are."""
    if first is None or second is None:
        return second if first is None else first
    return first & second
