"""The tables that filters of scripts read: which text each token writes, and which tokens write a text."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from polybit.text import PieceIndex, Tokenizer

P = ParamSpec("P")
T = TypeVar("T")

MANY = -1  # in place of a code point


@dataclass(eq=False)
class CharTrie:
    """Pieces by their characters: `leaf` are the tokens whose piece ends here."""

    children: dict[str, "CharTrie"] = field(default_factory=dict)
    leaf: list[int] = field(default_factory=list)

    def add(self, piece: str, token: int) -> None:
        node = self
        for character in piece:
            node = node.children.setdefault(character, CharTrie())
        node.leaf.append(token)


def kept(make: "Callable[Concatenate[Vocabulary, P], T]") -> "Callable[Concatenate[Vocabulary, P], T]":
    """The method, which makes its table once for each object and arguments; tables go when the object goes."""

    @wraps(make)
    def get(self: "Vocabulary", /, *args: P.args, **kwargs: P.kwargs) -> T:
        tables: dict[Any, T] = self.__dict__.setdefault("_tables", {})
        key = (make.__name__, args, tuple(sorted(kwargs.items())))
        if key not in tables:
            tables[key] = make(self, *args, **kwargs)
        return tables[key]

    return get


class Vocabulary:
    """Over `inner`, polybit's tokenizer. Each table is made at its first use; do not change what is returned."""

    inner: Tokenizer

    @kept
    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:
        """The text of every id; of special tokens their names on request, else nothing."""
        pieces, size = self.inner.pieces, self.inner.vocab_size
        texts = [pieces.of.get(token, b"").decode(errors="replace") for token in range(size)]
        for token in pieces.special:
            texts[token] = (self.inner.token_of(token) or "") if include_special_tokens else ""
        return texts

    @kept
    def get_piece_to_id_dict(self) -> dict[str, int]:
        """The first id of each text."""
        pairs = list(enumerate(self.get_id_to_piece_list()))
        return {piece: token for token, piece in reversed(pairs) if piece}

    @kept
    def get_prefix_to_ids_dict(self) -> dict[str, list[int]]:
        """For the beginnings of all texts, the whole included: the ids of those that begin so."""
        found: dict[str, list[int]] = {}
        for token, piece in enumerate(self.get_id_to_piece_list()):
            for length in range(1, len(piece) + 1):
                found.setdefault(piece[:length], []).append(token)
        return found

    @kept
    def get_prefix_id_to_ids_dict(self) -> dict[int, list[int]]:
        """For each id that has a text: those whose text begins with it, itself included."""
        by_prefix = self.get_prefix_to_ids_dict()
        return {token: by_prefix[piece] for token, piece in enumerate(self.get_id_to_piece_list()) if piece}

    @kept
    def get_id_to_ord_list(self) -> list[int]:
        """The code point of ids that write one character; MANY for others."""
        return [ord(piece) if len(piece) == 1 else MANY for piece in self.get_id_to_piece_list()]

    @kept
    def get_char_trie(self) -> CharTrie:
        return self._trie(ignores_case=False)

    @kept
    def get_char_trie_ci(self) -> CharTrie:
        """In lower case."""
        return self._trie(ignores_case=True)

    @kept
    def lower_index(self) -> PieceIndex:
        """Tokens by what they write in lower case, in bytes."""
        pieces = self.inner.pieces
        return PieceIndex(replace(pieces, of={token: _lower(piece) for token, piece in pieces.of.items()}))

    def _trie(self, ignores_case: bool) -> CharTrie:
        trie = CharTrie()
        for token, piece in enumerate(self.get_id_to_piece_list()):
            if piece:
                trie.add(piece.lower() if ignores_case else piece, token)
        return trie


def _lower(piece: bytes) -> bytes:
    try:
        return piece.decode().lower().encode()
    except UnicodeDecodeError:  # part of a character, which has no case
        return piece
