"""Tokenizer folders of both families, small enough to read."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = ["▁the", "▁capital", "of", "▁▁▁", "▁", "é", "中", "Hello", "▁Hello"]


def byte_level(folder: Path, specials: tuple[str, ...] = ("<s>", "</s>", "<pad>"), **settings: Any) -> Path:
    """One token a byte, plus the merge of a space and an `a`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _save(tokenizer, folder, specials, settings)


def sentencepiece(folder: Path, lead: bool = True, **settings: Any) -> Path:
    """Unigram with byte fallback; with `lead` the tokenizer puts a space in front of every text, as Llama 2's does."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = list("abcdefghijklmnopqrstuvwxyzH.!")
    vocabulary = [("<unk>", 0.0), *((token, -10.0) for token in [*fallback, *letters]), *((w, -1.0) for w in WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    prepend = [normalizers.Prepend("▁")] if lead else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if lead else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return _save(tokenizer, folder, ("<s>", "</s>"), settings)


def _save(tokenizer: Tokenizer, folder: Path, specials: tuple[str, ...], settings: dict[str, Any]) -> Path:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"} | settings)
    return folder


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
