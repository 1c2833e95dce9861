"""The tokenizer inside a GGUF file as tokenizer.json and tokenizer_config.json.

Two kinds exist in the supported families: byte-level BPE (`gpt2`), whose file names its pre-tokenizer, and
SentencePiece BPE (`llama`), whose merges follow from the pieces' scores.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from polybit.errors import FormatError, UnsupportedModel
from polybit.format.gguf_header import Metadata

Json = dict[str, Any]

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


class Kind(IntEnum):
    """The file's classification of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class PreTokenizer:
    """How byte-level BPE cuts text before it merges. `pattern` None: GPT-2's own, which ByteLevel has built in."""

    pattern: str | None = None
    single_digits: bool = False
    normalizer: str | None = None
    add_bos: bool = False  # where the file does not say
    ignore_merges: bool = False  # a piece that is a token as a whole is taken whole


def _words(digits: str) -> str:
    """Contractions, words, runs of at most so many digits, other signs, line ends, white space."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = PreTokenizer(_words(r"\p{N}{1,3}"), add_bos=True, ignore_merges=True)
_QWEN2 = PreTokenizer(_words(r"\p{N}"), normalizer="NFC")

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(),
    "default": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "tekken": PreTokenizer(_TEKKEN, add_bos=True, ignore_merges=True),
}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and what kind each is."""

    tokens: list[str]
    kinds: list[int]

    def entries(self, *unwanted: Kind) -> Json:
        return {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind not in unwanted
        }

    def added(self, strips_after_special: bool) -> list[Json]:
        """Tokens that are found in the text as they stand, before anything else is done to it."""
        return [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": strips_after_special and kind == Kind.CONTROL,
                "normalized": False,
                "special": kind != Kind.USER_DEFINED,
            }
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN) and token
        ]


def make_tokenizer(metadata: Metadata, config: Mapping[str, Any], strips_after_special: bool) -> tuple[Json, Json]:
    """tokenizer.json and tokenizer_config.json. FormatError: damaged; UnsupportedModel: a kind that is not read."""
    match metadata.text("tokenizer.ggml.model"):
        case "gpt2":
            vocabulary = _vocabulary(metadata)
            body, add_bos = _byte_level(metadata, vocabulary)
        case "llama":
            vocabulary = _with_spaces(_vocabulary(metadata))
            body, add_bos = _sentence_piece(metadata, vocabulary), True
        case other:
            raise UnsupportedModel(f"{metadata.where}: tokenizers of kind {other[:80]!r} are not supported")
    roles = _roles(metadata, vocabulary)
    ends = {
        "bos": roles.get("bos") if metadata.flag("tokenizer.ggml.add_bos_token", add_bos) else None,
        "eos": roles.get("eos") if metadata.flag("tokenizer.ggml.add_eos_token", False) else None,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(strips_after_special),
        "post_processor": _template(ends["bos"], ends["eos"], vocabulary),
        **body,
    }
    return tokenizer, _tokenizer_config(metadata, config, roles, ends)


def _tokenizer_config(
    metadata: Metadata, config: Mapping[str, Any], roles: Mapping[str, str], ends: Mapping[str, str | None]
) -> Json:
    made: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        **{f"{role}_token": token for role, token in roles.items()},
        **{f"add_{role}_token": token is not None for role, token in ends.items()},
    }
    if "tokenizer.chat_template" in metadata:
        made["chat_template"] = metadata.text("tokenizer.chat_template")
    return made


# ---- vocabulary


def _vocabulary(metadata: Metadata) -> Vocabulary:
    tokens = metadata.texts("tokenizer.ggml.tokens")
    key = "tokenizer.ggml.token_type"
    kinds = metadata.counts(key) if key in metadata else [int(Kind.NORMAL)] * len(tokens)
    if len(kinds) != len(tokens):
        raise metadata.unusable(key, f"a list of {len(kinds)}", f"{len(tokens)}, one for each token")
    return Vocabulary(tokens, kinds)


def _with_spaces(vocabulary: Vocabulary) -> Vocabulary:
    """User-defined tokens are matched against plain text, so those of spaces must be spelled with them."""
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    plain = [token.replace(SPACE_MARK, " ") if kind == Kind.USER_DEFINED else token for token, kind in pairs]
    return Vocabulary(plain, vocabulary.kinds)


def _roles(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, str]:
    """Special tokens by role; roles that the file leaves out are left out."""
    keys = {role: f"tokenizer.ggml.{name}_token_id" for role, name in ROLES.items()}
    return {role: _token(metadata, vocabulary, key) for role, key in keys.items() if key in metadata}


def _token(metadata: Metadata, vocabulary: Vocabulary, key: str) -> str:
    index = metadata.count(key)
    if index >= len(vocabulary.tokens):
        raise metadata.unusable(key, str(index), f"less than the {len(vocabulary.tokens)} tokens")
    return vocabulary.tokens[index]


def _template(bos: str | None, eos: str | None, vocabulary: Vocabulary) -> Json | None:
    """The post-processor that puts a BOS in front and an EOS behind, where there is one."""
    if bos is None and eos is None:
        return None
    ids = {token: vocabulary.tokens.index(token) for token in (bos, eos) if token is not None}

    def around(name: str, type_id: int) -> list[Json]:
        parts: list[Json | None] = [
            {"SpecialToken": {"id": bos, "type_id": type_id}} if bos is not None else None,
            {"Sequence": {"id": name, "type_id": type_id}},
            {"SpecialToken": {"id": eos, "type_id": type_id}} if eos is not None else None,
        ]
        return [part for part in parts if part is not None]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()},
    }


def _bpe(vocab: Json, merges: list[list[str]], **settings: Any) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": vocab,
        "merges": merges,
    }


# ---- byte-level BPE


def _byte_level(metadata: Metadata, vocabulary: Vocabulary) -> tuple[Json, bool]:
    """The body of tokenizer.json, and whether a BOS goes in front where the file does not say."""
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedModel(f"{metadata.where}: pre-tokenizer {name[:80]!r} is not supported (supported: {known})")
    pre = PRE_TOKENIZERS[name]
    vocab = vocabulary.entries(Kind.UNUSED)
    body = {
        "normalizer": {"type": pre.normalizer} if pre.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(_steps(pre))},
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": _bpe(vocab, _stored_merges(metadata, vocab), ignore_merges=pre.ignore_merges),
    }
    return body, pre.add_bos


def _steps(pre: PreTokenizer) -> Iterator[Json]:
    if pre.single_digits:
        yield {"type": "Digits", "individual_digits": True}
    if pre.pattern is not None:
        yield {"type": "Split", "pattern": {"Regex": pre.pattern}, "behavior": "Isolated", "invert": False}
    yield BYTE_LEVEL | {"use_regex": pre.pattern is None}


def _stored_merges(metadata: Metadata, vocab: Mapping[str, int]) -> list[list[str]]:
    merges = []
    for line in metadata.texts("tokenizer.ggml.merges"):
        left, space, right = line.partition(" ")
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(
                f"{metadata.where}: merge {line[:80]!r} is not of two tokens into one; fetch the file again"
            )
        merges.append([left, right])
    return merges


# ---- SentencePiece BPE


def _sentence_piece(metadata: Metadata, vocabulary: Vocabulary) -> Json:
    scores = metadata.reals("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.tokens):
        expected = f"{len(vocabulary.tokens)}, one for each token"
        raise metadata.unusable("tokenizer.ggml.scores", f"a list of {len(scores)}", expected)
    prefixed = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    spaces: Json = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    settings = {"unk_token": _unknown(metadata, vocabulary), "fuse_unk": True, "byte_fallback": True}
    return {
        "normalizer": _sequence("normalizers", [{"type": "Prepend", "prepend": SPACE_MARK}, marks])
        if prefixed
        else marks,
        "pre_tokenizer": None,
        "decoder": _sequence("decoders", [*decoders, *([_STRIP_ONE] if prefixed else [])]),
        "model": _bpe(vocabulary.entries(), scored_merges(vocabulary, scores), **settings),
    }


_STRIP_ONE: Json = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _sequence(name: str, members: list[Json]) -> Json:
    return {"type": "Sequence", name: members}


def _unknown(metadata: Metadata, vocabulary: Vocabulary) -> str | None:
    key = "tokenizer.ggml.unknown_token_id"
    return _token(metadata, vocabulary, key) if key in metadata else None


def scored_merges(vocabulary: Vocabulary, scores: list[float]) -> list[list[str]]:
    """The pairs of ordinary pieces that make an ordinary piece, best piece first.

    SentencePiece joins the neighbours whose joint piece scores best; a list of merges in this order does the same.
    """
    ids = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == Kind.NORMAL
    }
    best_first = sorted(ids.values(), key=lambda i: -scores[i])
    return [pair for i in best_first for pair in _splits(vocabulary.tokens[i], ids)]


def _splits(token: str, ids: Mapping[str, int]) -> list[list[str]]:
    cuts = ([token[:i], token[i:]] for i in range(1, len(token)))
    pairs = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
    return sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
