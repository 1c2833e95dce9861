"""Which token ids begin, end and pad a text, resolved from the four files that may say so."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polybit.errors import ConfigError
from polybit.text.json_object import read_object

log = logging.getLogger(__name__)

TokenToId = Callable[[str], int | None]
ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class SpecialTokens:
    bos: int | None
    eos: tuple[int, ...]  # every id that ends a text, the config's own first; empty: nothing does
    pad: int | None
    add_bos: bool | None  # what tokenizer_config.json says about a BOS in front; None: nothing
    names: Mapping[str, str]  # "bos_token" -> "<s>", as chat templates want them


def read_special_tokens(folder: Path, id_of: TokenToId, vocab_size: int) -> SpecialTokens:
    """config.json's ids, else those of the tokens that tokenizer_config.json names.

    A text ends at any id that these or generation_config.json give for its end. ConfigError for what is no id.
    """
    config = read_object(folder / "config.json") or {}
    text_config = config.get("text_config")
    sources = [config, text_config] if isinstance(text_config, dict) else [config]
    generation = read_object(folder / "generation_config.json") or {}
    tokenizer_config = read_object(folder / "tokenizer_config.json") or {}
    names = {f"{role}_token": name for role in ROLES if (name := _token_name(tokenizer_config, role)) is not None}

    def ids(role: str, objects: list[dict[str, Any]]) -> list[int]:
        found = [i for source in objects for i in _declared_ids(folder, source, role, vocab_size)]
        named = id_of(names[f"{role}_token"]) if f"{role}_token" in names else None
        return found if named is None else [*found, named]

    bos, eos, pad = ids("bos", sources), ids("eos", [*sources, generation]), ids("pad", sources)
    first_bos = bos[0] if bos else None
    add_bos = tokenizer_config.get("add_bos_token")
    return SpecialTokens(
        bos=first_bos,
        eos=tuple(dict.fromkeys(eos)),
        pad=pad[0] if pad else _fallback_pad(id_of, first_bos, eos),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        names=names,
    )


def _declared_ids(folder: Path, source: Mapping[str, Any], role: str, vocab_size: int) -> list[int]:
    value = source.get(f"{role}_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) for i in values):
        raise ConfigError(f"{folder}: {role}_token_id is {value!r:.80}, expected a token id or a list of them; mend it")
    declared = [i for i in values if i >= 0]  # -1 means: none
    for i in declared:
        if i >= vocab_size:
            log.warning("%s_token_id %d is ignored: the vocabulary ends at %d", role, i, vocab_size - 1)
    return [i for i in declared if i < vocab_size]


def _token_name(tokenizer_config: Mapping[str, Any], role: str) -> str | None:
    value = tokenizer_config.get(f"{role}_token")
    if isinstance(value, dict):  # a serialized AddedToken
        value = value.get("content")
    return value if isinstance(value, str) else None


def _fallback_pad(id_of: TokenToId, bos: int | None, eos: list[int]) -> int | None:
    named = id_of("<pad>")
    if named is not None:
        return named
    return eos[0] if eos and eos[0] != bos else None
