"""Text that follows a JSON schema, a regular expression or a Lark grammar, by the llguidance library (an extra)."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from polybit.errors import RequestError
from polybit.generator.sampling.mask import TokenMask, mask_of
from polybit.text import Tokenizer

if TYPE_CHECKING:
    import llguidance

log = logging.getLogger(__name__)

JSON_STYLE = {"whitespace_pattern": r"[ \n\r\t]{1,64}"}  # bounded: some models would write blanks for ever
MARKER = "\x02"  # stands in front of a text, so that what a tokenizer puts there can be told apart
SPECIAL = b"\xff"  # in front of a special token's name, as llguidance wants it
_vocabularies: weakref.WeakKeyDictionary[Tokenizer, llguidance.LLTokenizer] = weakref.WeakKeyDictionary()


class Grammar:
    """A filter (see filters.py) by what the library compiled."""

    def __init__(self, source: str, name: str, tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]) -> None:
        """`source`: of the kind `name`, a field of SamplingParams. Raises RequestError where it cannot be compiled."""
        library = load_library(name)
        grammar = compiled(library, source, name)
        self._matcher = library.LLMatcher(vocabulary(library, tokenizer), grammar, log_level=0)
        self._name = name
        self._known = mask_of(range(min(vocab_size, tokenizer.vocab_size)), vocab_size)
        self._ends = mask_of(ends, vocab_size)
        self._mask = np.zeros(-(-(tokenizer.vocab_size + 1) // 32), np.int32)
        self._check()

    def allowed(self) -> TokenMask:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        allowed = self._mask[: len(self._known)] & self._known
        return allowed | self._ends if self._matcher.is_accepting() else allowed

    @property
    def is_done(self) -> bool:
        return bool(self._matcher.is_stopped())

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def rewind(self, num_tokens: int) -> None:
        self._matcher.rollback(num_tokens)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"{self._name} cannot be followed: {_first_line(self._matcher.get_error())}")


def load_library(name: str) -> Any:
    """Raises RequestError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise RequestError(f"{name} needs the library llguidance: pip install 'polybit[structured]'") from None
    return llguidance


def compiled(library: Any, source: str, name: str) -> str:
    """The library's own form of a grammar. Raises RequestError where it does not understand all of it."""
    matcher = library.LLMatcher
    make = {
        "json_schema": lambda schema: matcher.grammar_from_json_schema(schema, defaults=JSON_STYLE),
        "regex": matcher.grammar_from_regex,
        "lark": matcher.grammar_from_lark,
    }
    try:
        grammar: str = make[name](source)
    except ValueError as error:
        raise RequestError(f"{name} cannot be compiled: {_first_line(str(error))}") from None
    is_error, messages = matcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise RequestError(f"{name} cannot be compiled: {_first_line(' '.join(messages))}")
    for message in messages:
        log.warning("%s: %s", name, message)
    return grammar


def vocabulary(library: Any, tokenizer: Tokenizer) -> Any:
    """What the library knows of a tokenizer: made once, in a second or so for a large one."""
    if tokenizer not in _vocabularies:
        wrapper = library.TokenizerWrapper(_Vocabulary(tokenizer))
        _vocabularies[tokenizer] = library.LLTokenizer(wrapper, n_vocab=tokenizer.vocab_size + 1)
    return _vocabularies[tokenizer]


class _Vocabulary:
    """The tokenizer as llguidance asks for it: the bytes of each token, and tokens for bytes.

    The end of a text is a token of its own behind the others: which tokens end a text is the request's to say.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces = tokenizer.pieces.of
        special = tokenizer.pieces.special
        self.eos_token_id = tokenizer.vocab_size
        self.special_token_ids = [*sorted(special), self.eos_token_id]
        self.tokens = [
            SPECIAL + (tokenizer.token_of(i) or "").encode() if i in special else self._pieces.get(i, b"")
            for i in range(tokenizer.vocab_size)
        ]
        self.tokens.append(SPECIAL + b"<end of text>")

    def __call__(self, text: bytes) -> list[int]:
        """As the tokenizer would write it in the middle of a text."""
        words = text.decode(errors="ignore")
        for ids in (self._encode(words), self._after_marker(words)):
            if b"".join(self._pieces.get(token, b"") for token in ids) == text:
                return ids
        return self._longest_first(text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, parse_special=False)

    def _after_marker(self, text: str) -> list[int]:
        ids = self._encode(MARKER + text)
        marks = [place for place, token in enumerate(ids) if self._pieces.get(token, b"").endswith(MARKER.encode())]
        return ids[marks[0] + 1 :] if marks else []

    def _longest_first(self, text: bytes) -> list[int]:
        ids: list[int] = []
        while text:
            fitting = self._tokenizer.piece_index.beginnings_of(text)
            if not fitting:
                return ids
            ids.append(fitting[-1])
            text = text.removeprefix(self._pieces[fitting[-1]])
        return ids


def _first_line(message: str) -> str:
    return " ".join(message.split("<state>")[0].split())[:300]
