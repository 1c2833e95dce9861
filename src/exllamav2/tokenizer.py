"""ExLlamaV2Tokenizer: text to padded tensors of ids and back."""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from exllamav2.config import ExLlamaV2Config
from exllamav2.refusal import refuse
from exllamav2.vocabulary import Vocabulary
from polybit.text import Tokenizer


class ExLlamaV2Tokenizer(Vocabulary):
    def __init__(
        self, config: ExLlamaV2Config, lazy_init: bool = True, force_json: bool = False, force_spm: bool = False
    ) -> None:
        """Reads tokenizer.json. `lazy_init` and `force_json` ask for what always happens."""
        refuse("ExLlamaV2Tokenizer", force_spm=force_spm)
        self.config = config
        self.inner = Tokenizer.open(config.folder)
        self.bos_token_id = self.inner.bos_id
        self.eos_token_id = self.inner.eos_id
        self.pad_token_id = -1 if self.inner.pad_id is None else self.inner.pad_id
        self.bos_token, self.eos_token, self.pad_token = map(
            self._name, (self.inner.bos_id, self.inner.eos_id, self.inner.pad_id)
        )

    @overload
    def encode(
        self,
        text: str | list[str],
        add_bos: bool = False,
        add_eos: bool = False,
        encode_special_tokens: bool = False,
        return_offsets: Literal[False] = False,
        embeddings: Any = None,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        text: str | list[str],
        add_bos: bool = False,
        add_eos: bool = False,
        encode_special_tokens: bool = False,
        *,
        return_offsets: Literal[True],
        embeddings: Any = None,
    ) -> tuple[Tensor, Tensor]: ...

    def encode(
        self,
        text: str | list[str],
        add_bos: bool = False,
        add_eos: bool = False,
        encode_special_tokens: bool = False,
        return_offsets: bool = False,
        embeddings: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Ids [batch, len] int64, padded on the left; with `return_offsets` also minus each row's padding, [batch]."""
        refuse("ExLlamaV2Tokenizer.encode", embeddings=embeddings)
        texts = [text] if isinstance(text, str) else text
        rows = [self.inner.encode(line, add_bos, add_eos, encode_special_tokens) for line in texts]
        longest = max(map(len, rows), default=0)
        padding = [longest - len(row) for row in rows]
        ids = torch.tensor([[self.pad_token_id] * pad + row for pad, row in zip(padding, rows, strict=True)])
        ids = ids.long()  # a batch of empty rows would be float
        return (ids, -torch.tensor(padding)) if return_offsets else ids

    def decode(self, ids: Tensor | list[int], decode_special_tokens: bool = False) -> str | list[str]:
        """Text of ids [len], or of each row of ids [batch, len]; padding is dropped."""
        rows: list[Any] = ids.tolist() if isinstance(ids, Tensor) else ids
        if rows and isinstance(rows[0], list):
            return [self._decode(row, decode_special_tokens) for row in rows]
        return self._decode(rows, decode_special_tokens)

    def padding_mask(self, ids: Tensor) -> Tensor:
        """What padding adds to attention logits: -inf where `ids` is padding, else 0."""
        return torch.zeros(ids.shape).masked_fill(ids == self.pad_token_id, -math.inf)

    def num_tokens(self, text: str) -> int:
        return len(self.inner.encode(text, parse_special=False))

    def cached_encode_str(self, text: str) -> Tensor:
        """`encode` of a text; there is no cache, as nothing is slow."""
        return self.encode(text)

    def single_id(self, piece: str) -> int | None:
        """The id of a token by its name, None where there is none."""
        return self.inner.id_of(piece)

    def single_token(self, token_id: int) -> Tensor:
        """[1, 1]"""
        return torch.tensor([[token_id]])

    def get_vocab_size(self) -> int:
        return self.inner.vocab_size

    def _name(self, token: int | None) -> str | None:
        return None if token is None else self.inner.token_of(token)

    def _decode(self, row: list[int], special: bool) -> str:
        return self.inner.decode([token for token in row if special or token != self.pad_token_id], special)
