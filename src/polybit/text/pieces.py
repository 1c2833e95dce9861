"""What each token id adds to a text, as bytes: one character may be spread over several tokens.

Two families cover the tokenizers of language models: byte-level ones (GPT-2's alphabet, a printable character for
each byte) and SentencePiece ones (a mark for the space, and tokens like `<0xE4>` for bytes of characters without one).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polybit.errors import ConfigError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARKED_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}

ToBytes = Callable[[str], bytes]


@dataclass(frozen=True)
class Pieces:
    of: Mapping[int, bytes]
    special: frozenset[int]  # control tokens, which stand for no text
    strips_lead: bool  # the first space of a text is the tokenizer's own, not the text's


def read_pieces(
    decoder: Mapping[str, Any] | None, vocabulary: Mapping[str, int], special: frozenset[int], where: str
) -> Pieces:
    """`decoder` is that entry of tokenizer.json. Raises ConfigError where it belongs to neither family."""
    steps = _decoder_steps(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _pieces(_byte_level_bytes, vocabulary, special, strips_lead=False)
    if not kinds or not set(kinds) <= SPACE_MARKED_STEPS:
        raise ConfigError(
            f"{where}: decoder {' + '.join(kinds) or 'null'} is not supported; "
            "expected ByteLevel, Metaspace, or Replace with ByteFallback"
        )
    to_bytes = _space_marked(_space_mark(steps, where), "ByteFallback" in kinds)
    return _pieces(to_bytes, vocabulary, special, any(map(_strips_lead, steps)))


def _pieces(to_bytes: ToBytes, vocabulary: Mapping[str, int], special: frozenset[int], strips_lead: bool) -> Pieces:
    return Pieces({i: to_bytes(token) for token, i in vocabulary.items()}, special, strips_lead)


def _decoder_steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _space_mark(steps: list[Mapping[str, Any]], where: str) -> str:
    """The character that stands for a space: what Metaspace names, or what Replace turns into one."""
    for step in steps:
        if step["type"] == "Metaspace":
            return str(step.get("replacement", "▁"))
        if step["type"] == "Replace":
            mark, content = (step.get("pattern") or {}).get("String"), step.get("content")
            if not isinstance(mark, str) or content != " ":
                raise ConfigError(
                    f"{where}: decoder replaces {mark!r} by {content!r}; only a space mark replaced by ' ' is supported"
                )
            return mark
    return " "


def _strips_lead(step: Mapping[str, Any]) -> bool:
    match step["type"]:
        case "Metaspace":
            return bool(step.get("prepend_scheme") != "never")
        case "Strip":
            return step.get("content") == " " and bool(step.get("start"))
        case _:
            return False


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 character stands for its own code, the 68 others follow from U+0100 up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[char] for char in token)
    except KeyError:  # an added token, written as plain text
        return token.encode()


def _space_marked(mark: str, byte_fallback: bool) -> ToBytes:
    def to_bytes(token: str) -> bytes:
        byte = BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.replace(mark, " ").encode()

    return to_bytes
