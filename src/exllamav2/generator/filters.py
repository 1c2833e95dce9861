"""ExLlamaV2Filter, which scripts subclass to say what the next token may be, and two that are made already.

What several filters of one text say together is in filtering.py.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from exllamav2.model import ExLlamaV2
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import RequestError
from polybit.generator.filters import OneOf
from polybit.generator.sampling.mask import tokens_in

Allowed = Collection[int] | None  # None: any token


class ExLlamaV2Filter:
    """`begin` a text, `next` says what may come and which tokens end it, `feed` tells what came; again `next`.

    A filter that can write masks says so by `can_mask_logits`; then `prepare_logit_mask` and `mask_logits` are called
    in place of `next`, and may set logits to -inf, but not change them otherwise.
    """

    def __init__(self, model: ExLlamaV2, tokenizer: ExLlamaV2Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.sequence_str = ""

    def clone(self, c: Any = None) -> Any:
        """Another filter of the same kind; subclasses copy what they add to it."""
        c = ExLlamaV2Filter.__new__(type(self)) if c is None else c
        c.__dict__.update(self.__dict__)
        return c

    def begin(self, prefix_str: str) -> None:
        """A text begins, after `prefix_str`, which counts as part of it."""
        raise NotImplementedError

    def feed(self, token: Tensor) -> None:
        """The token that came, [1, 1]."""
        raise NotImplementedError

    def next(self) -> tuple[Allowed, Collection[int]]:
        """Tokens that may come, and those of them after which the text has ended."""
        raise NotImplementedError

    def use_background_worker(self) -> bool:
        """Whether `next` is slow. It runs between two steps either way."""
        return False

    def can_mask_logits(self) -> bool:
        return False

    def prepare_logit_mask(self) -> bool:
        """Asked only of filters that can mask logits, as the next one is."""
        raise NotImplementedError

    def mask_logits(self, logits: Tensor) -> Tensor:
        """logits [1, V] without what may not come."""
        raise NotImplementedError


class _Options(ExLlamaV2Filter):
    """Over polybit's own filter for such texts, which works with the bytes of tokens."""

    def __init__(
        self, model: ExLlamaV2, tokenizer: ExLlamaV2Tokenizer, options: str | list[str], is_open: bool
    ) -> None:
        super().__init__(model, tokenizer)
        self.options = [options] if isinstance(options, str) else list(options)
        self.is_open = is_open
        self.index = tokenizer.inner.piece_index
        self.begin("")

    def begin(self, prefix_str: str) -> None:
        rests = [option[len(prefix_str) :] for option in self.options if option.startswith(prefix_str)]
        if not rests or not all(rests):
            raise RequestError(
                f"{type(self).__name__}: {self.options!r:.60}, expected texts longer than {prefix_str!r}"
            )
        size, ends = self.tokenizer.get_vocab_size(), self.tokenizer.inner.eos_ids[:1]
        self._inner = OneOf(rests, self.index, size, ends, self.is_open)

    def feed(self, token: Tensor) -> None:
        self._inner.accept(int(token))

    def next(self) -> tuple[Allowed, Collection[int]]:
        mask = self._inner.allowed()
        if mask is None:
            return None, set()
        allowed = set(tokens_in(mask))
        return allowed, {token for token in allowed if self._ends_after(token)}

    def _ends_after(self, token: int) -> bool:
        self._inner.accept(token)
        is_end = self._inner.is_done or token == self.tokenizer.eos_token_id
        self._inner.rewind(1)
        return is_end


class ExLlamaV2PrefixFilter(_Options):
    """The text begins with one of `prefix_strings`, and goes on freely."""

    def __init__(self, model: ExLlamaV2, tokenizer: ExLlamaV2Tokenizer, prefix_strings: str | list[str]) -> None:
        super().__init__(model, tokenizer, prefix_strings, is_open=True)


class ExLlamaV2SelectFilter(_Options):
    """The text is one of `options`, and ends where it is one that can become no other, or by the end token."""

    def __init__(
        self,
        model: ExLlamaV2,
        tokenizer: ExLlamaV2Tokenizer,
        options: str | list[str],
        case_insensitive: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, options, is_open=False)
        if case_insensitive:
            self.options = [option.lower() for option in self.options]
            self.index = tokenizer.lower_index()
            self.begin("")
