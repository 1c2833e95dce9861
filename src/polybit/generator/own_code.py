"""Code that a request brings along: whatever it raises becomes a RequestError, which ends that request alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index
from typing import Any

import numpy as np

from polybit.errors import PolybitError, RequestError
from polybit.generator.filters import Filter
from polybit.generator.sampling import Drawn
from polybit.generator.sampling.mask import TokenMask

Revise = Callable[[Drawn], int]  # the token to take in place of the one that was drawn


class OwnFilter:
    """A filter (see filters.py) whose answers are checked."""

    def __init__(self, inner: Filter, vocab_size: int) -> None:
        self._inner = inner
        self._num_words = -(-vocab_size // 32)

    def allowed(self) -> TokenMask | None:
        with _explained("filter"):
            mask = self._inner.allowed()
            if mask is not None and (mask.shape != (self._num_words,) or mask.dtype != np.int32):
                raise RequestError(
                    f"this request's own filter allows {mask.dtype} {mask.shape}, expected {self._num_words} words of "
                    "int32, as mask_of(tokens, engine.vocab_size) makes them"
                )
            return mask

    @property
    def is_done(self) -> bool:
        with _explained("filter"):
            return self._inner.is_done

    def accept(self, token: int) -> None:
        with _explained("filter"):
            self._inner.accept(token)

    def rewind(self, num_tokens: int) -> None:
        with _explained("filter"):
            self._inner.rewind(num_tokens)


def own_revise(revise: Revise, vocab_size: int) -> Revise:
    """Gives tokens of the vocabulary only."""

    def revised(drawn: Drawn) -> int:
        with _explained("revise"):
            given = revise(drawn)
        token = _whole(given)
        if token is None or not 0 <= token < vocab_size:
            raise RequestError(f"revise gave {given!r:.60}, expected a token id from 0 to {vocab_size - 1}")
        return token

    return revised


def _whole(given: Any) -> int | None:
    """Ids come as numbers of other libraries too, such as a tensor of one."""
    try:
        return index(given)
    except TypeError:
        return None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except PolybitError:
        raise
    except Exception as error:
        raise RequestError(f"this request's own {what} failed: {type(error).__name__}: {error}") from error
