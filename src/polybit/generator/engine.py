"""Prompts in, text out: `polybit.load(folder).generate("Once upon a time").text`."""

from collections.abc import Collection, Generator, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard, overload

from polybit.cache import KVPool
from polybit.errors import RequestError
from polybit.generator.completion import Completion
from polybit.generator.graphs import decode_graphs
from polybit.generator.params import SamplingParams, with_fields
from polybit.generator.request import new_sequence
from polybit.generator.runner import Part, Runner
from polybit.generator.sequence import Sequence
from polybit.model.footprint import CHUNK_TOKENS
from polybit.model.model import Model
from polybit.text import ChatTemplate, Message, Tokenizer

Prompt = str | list[int] | tuple[int, ...]


class Engine:
    """A model, its tokenizer and a K/V pool. Prompts of a list run one after another."""

    def __init__(self, model: Model, tokenizer: Tokenizer, pool: KVPool, folder: Path, use_graphs: bool = True) -> None:
        """`folder`: where the chat template lies. `use_graphs`: where the model can."""
        self.model = model
        self.tokenizer = tokenizer
        self.pool = pool
        self.folder = folder
        self.context = min(model.max_seq_len, pool.num_tokens)  # tokens of one prompt and its answer
        self.vocab_size = min(tokenizer.vocab_size, model.spec.embedding.num_rows)  # tokens that may be drawn
        self._runner = Runner(model, pool, self.vocab_size, decode_graphs(model, pool, use_graphs))

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises ConfigError where the model has none."""
        return ChatTemplate.open(self.folder, self.tokenizer.special_tokens.names)

    # ---- generation

    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **fields: Any) -> Completion: ...

    @overload
    def generate(self, prompt: list[str], params: SamplingParams | None = None, **fields: Any) -> list[Completion]: ...

    def generate(
        self, prompt: Any, params: SamplingParams | None = None, **fields: Any
    ) -> Completion | list[Completion]:
        """Continue `prompt`: text, token ids, or a list of texts. `fields` are those of SamplingParams.

        Special tokens in the text count as such, and BOS is put in front where the model wants it; ids are taken as
        they are. Prompt i of a list has seed + i. Raises RequestError for whatever cannot be served.
        """
        wanted = with_fields(params, fields)
        if not _is_texts(prompt):
            return self.stream(prompt, wanted).drain()
        seeds = [None if wanted.seed is None else wanted.seed + i for i in range(len(prompt))]
        streams = [self.stream(text, wanted, seed=seed) for text, seed in zip(prompt, seeds, strict=True)]
        return [stream.drain() for stream in streams]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **fields: Any) -> "Stream":
        """As `generate`, but yields the text piece by piece."""
        ids = self.prompt_ids(prompt)
        return self._stream(ids, with_fields(params, fields), continues=ids)

    def chat(
        self,
        messages: list[Message],
        params: SamplingParams | None = None,
        template_variables: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Completion:
        """The model's answer to [{"role": "user", "content": "Hello"}, ...], by its own chat template."""
        return self.stream_chat(messages, params, template_variables, **fields).drain()

    def stream_chat(
        self,
        messages: list[Message],
        params: SamplingParams | None = None,
        template_variables: dict[str, Any] | None = None,
        **fields: Any,
    ) -> "Stream":
        """As `chat`, but yields the text piece by piece."""
        prompt = self.chat_template.render(messages, **(template_variables or {}))
        ids = self._text_ids(prompt, add_bos=False)
        return self._stream(ids, with_fields(params, fields), continues=())

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, checked against the model's vocabulary."""
        if isinstance(prompt, str):
            return self._text_ids(prompt, add_bos=self.tokenizer.adds_bos or self.model.spec.needs_bos)
        return _checked_ids(prompt, self.model.spec.embedding.num_rows)

    def _text_ids(self, text: str, add_bos: bool) -> list[int]:
        """A tokenizer may have more tokens than its model has rows: some were added without training."""
        ids, size = self.tokenizer.encode(text, add_bos=add_bos), self.model.spec.embedding.num_rows
        beyond = next((token for token in ids if token >= size), None)
        if beyond is not None:
            raise RequestError(
                f"the prompt holds token {beyond} ({self.tokenizer.token_of(beyond)!r}), but the model's last is "
                f"{size - 1}; leave it out, or take the tokenizer files of this very model"
            )
        return ids

    def _stream(self, ids: list[int], params: SamplingParams, continues: Collection[int]) -> "Stream":
        room = self._room_after(ids)
        sequence = new_sequence(ids, params, self.tokenizer, self.vocab_size, room, shown=continues)
        return Stream(sequence, self._run(sequence))

    def _room_after(self, ids: list[int]) -> int:
        if not ids:
            raise RequestError("the prompt is empty; give at least one token")
        room = self.context - len(ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.context} including the answer; "
                f"shorten it, or load with a larger cache_tokens (now {self.pool.num_tokens}; "
                f"the model reaches {self.model.max_seq_len})"
            )
        return room

    def _run(self, sequence: Sequence) -> Generator[str, None, None]:
        sequence.begin()
        try:
            while sequence.finish_reason is None:
                (token,) = self._runner.run([Part(sequence, min(sequence.num_pending, CHUNK_TOKENS))])
                if token is None:
                    continue
                piece = sequence.accept(token)
                if sequence.finish_reason is not None:
                    self._runner.release(sequence)  # nobody need come back after the last piece
                yield piece
        finally:
            self._runner.release(sequence)


def _is_texts(prompt: Any) -> TypeGuard[list[str]]:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(text, str) for text in prompt)


def _checked_ids(prompt: Any, size: int) -> list[int]:
    if not isinstance(prompt, (list, tuple)):
        raise RequestError(f"the prompt is of type {type(prompt).__name__}, expected text or a list of token ids")
    for i, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise RequestError(f"prompt[{i}] is {token!r}, expected a token id from 0 to {size - 1}")
    return list(prompt)


class Stream(Iterator[str]):
    """The text of one generation, piece by piece. Leaving it early (`close`, or its `with` block) frees its pages."""

    def __init__(self, sequence: Sequence, pieces: Generator[str, None, None]) -> None:
        self._sequence = sequence
        self._pieces = pieces

    def __next__(self) -> str:
        """The next piece that is not empty."""
        return next(piece for piece in self._pieces if piece)

    @property
    def completion(self) -> Completion:
        """What came out so far; whole once the stream is exhausted."""
        return self._sequence.completion()

    def drain(self) -> Completion:
        """Generate to the end."""
        for _ in self:
            pass
        return self.completion

    def close(self) -> None:
        self._pieces.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
