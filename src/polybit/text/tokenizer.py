"""Text to token ids and back, from a model folder's tokenizer.json."""

import json
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from polybit.errors import ConfigError, RequestError
from polybit.text.detokenizer import Detokenizer
from polybit.text.json_object import read_object, read_text
from polybit.text.piece_index import PieceIndex
from polybit.text.pieces import Pieces, read_pieces
from polybit.text.special_tokens import SpecialTokens, read_special_tokens


class Tokenizer:
    """`Tokenizer.open(folder)`. Safe to use from several threads."""

    def __init__(self, inner: tokenizers.Tokenizer, pieces: Pieces, special_tokens: SpecialTokens) -> None:
        self._inner = inner
        self._lock = threading.Lock()  # encode() switches a flag of the shared inner tokenizer
        self.pieces = pieces
        self.special_tokens = special_tokens

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """Raises ConfigError where tokenizer.json is missing, broken, or of an unsupported kind."""
        path = folder / "tokenizer.json"
        inner = _parse(path, _read_description(path))
        _add_missing_tokens(inner, folder)
        vocabulary = inner.get_vocab(with_added_tokens=True)
        special = frozenset(i for i, token in inner.get_added_tokens_decoder().items() if token.special)
        pieces = read_pieces(_decoder(inner), vocabulary, special, str(path))
        size = max(vocabulary.values(), default=-1) + 1
        return cls(inner, pieces, read_special_tokens(folder, inner.token_to_id, size))

    # ---- text and ids

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False, parse_special: bool = True) -> list[int]:
        """`parse_special`: `<|im_end|>` in the text means that token, not its ten characters. BOS is never doubled."""
        with self._lock:
            self._inner.encode_special_tokens = not parse_special
            try:
                ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
            except TypeError:
                raise RequestError(_why_no_text(text)) from None
            except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
                raise RequestError(f"the model's tokenizer has no tokens for this text: {error}") from None
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of `ids`; special tokens are dropped unless `special`, ids of no token always."""
        detokenizer = self.detokenizer(special)
        return "".join(map(detokenizer.feed, ids)) + detokenizer.finish()

    def detokenizer(self, special: bool = False, after: Iterable[int] = ()) -> Detokenizer:
        """For a stream of ids, continuing the text of `after`."""
        return Detokenizer(self.pieces, special, after)

    # ---- the vocabulary

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token as tokenizer.json writes it, added ones included, and its id."""
        vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        return vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's own vocabulary may be padded beyond it."""
        return max(self.vocabulary.values(), default=-1) + 1

    @cached_property
    def piece_index(self) -> PieceIndex:
        """Made at the first use, in some tenths of a second for a large vocabulary."""
        return PieceIndex(self.pieces)

    def id_of(self, token: str) -> int | None:
        """The id of a token as tokenizer.json writes it: `<|im_end|>`, `Ġthe`, `▁the`."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str | None:
        """The inverse of id_of."""
        found: str | None = self._inner.id_to_token(token_id) if token_id >= 0 else None
        return found

    # ---- special ids

    @property
    def bos_id(self) -> int | None:
        return self.special_tokens.bos

    @property
    def eos_id(self) -> int | None:
        return self.special_tokens.eos[0] if self.special_tokens.eos else None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.special_tokens.eos

    @property
    def pad_id(self) -> int | None:
        return self.special_tokens.pad

    @cached_property
    def adds_bos(self) -> bool:
        """Whether texts begin with BOS, by tokenizer_config.json, else by what tokenizer.json's post-processor does."""
        if self.bos_id is None:
            return False
        if self.special_tokens.add_bos is not None:
            return self.special_tokens.add_bos
        return list(self._inner.encode("", add_special_tokens=True).ids[:1]) == [self.bos_id]


def _why_no_text(given: object) -> str:
    if not isinstance(given, str):
        return f"text of type {type(given).__name__} cannot be encoded; expected str"
    broken = next(at for at, character in enumerate(given) if "\ud800" <= character <= "\udfff")
    return f"character {broken} of the text cannot be encoded: it was no UTF-8, or is half of a pair; give UTF-8 text"


def _read_description(path: Path) -> str:
    text = read_text(path)
    if text is not None:
        return text
    if (path.parent / "tokenizer.model").exists():
        raise ConfigError(
            f"{path.parent} has only a SentencePiece tokenizer.model, expected a tokenizer.json; "
            "make one with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raise ConfigError(f"{path.parent} has no tokenizer.json; copy it from the original model")


def _parse(path: Path, text: str) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is not a tokenizer that the tokenizers library reads ({reason}); fetch it again"
        ) from None
    inner.no_truncation()  # some files carry the settings of a training run
    inner.no_padding()
    return inner


def _decoder(inner: tokenizers.Tokenizer) -> dict[str, Any] | None:
    """The decoder's own JSON; parsing the whole file a second time would take a second for a large vocabulary."""
    decoder: dict[str, Any] | None = None if inner.decoder is None else json.loads(inner.decoder.__getstate__())
    return decoder


def _add_missing_tokens(inner: tokenizers.Tokenizer, folder: Path) -> None:
    """Older folders declare special tokens outside tokenizer.json; add those, with the ids that they must get."""
    declared = _declared_tokens(folder)
    missing = {i: token for i, token in declared.items() if inner.token_to_id(token) is None}
    for i, token in sorted(missing.items()):
        inner.add_special_tokens([token])
        if inner.token_to_id(token) != i:
            raise ConfigError(
                f"{folder}: added token {token!r} has id {i}, but the next free id of tokenizer.json is "
                f"{inner.token_to_id(token)}; take the tokenizer files of one model version"
            )


def _declared_tokens(folder: Path) -> dict[int, str]:
    listed = (read_object(folder / "tokenizer_config.json") or {}).get("added_tokens_decoder")
    by_id: dict[str, Any] = listed if isinstance(listed, dict) else {}
    listed_ids = [i for i in by_id if i.isdecimal() and len(i) < 10]  # Python refuses to read thousands of digits
    declared = {int(i): by_id[i].get("content") for i in listed_ids if isinstance(by_id[i], dict)}
    added = read_object(folder / "added_tokens.json") or {}
    declared |= {i: token for token, i in added.items() if isinstance(i, int)}
    return {i: token for i, token in declared.items() if isinstance(token, str) and token}
