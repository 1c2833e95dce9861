"""Prompts in, text out: `polybit.load(folder).generate("Once upon a time").text`."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeGuard, overload

from polybit.cache import KVPool, pages_for
from polybit.errors import PolybitError, RequestError
from polybit.fields import check_callback
from polybit.generator.background import Background
from polybit.generator.completion import Completion
from polybit.generator.filters import Filter
from polybit.generator.graphs import decode_graphs
from polybit.generator.own_code import Revise
from polybit.generator.params import SamplingParams, with_fields
from polybit.generator.request import new_sequence
from polybit.generator.runner import Runner
from polybit.generator.scheduler import Limits
from polybit.generator.sequence import Sequence
from polybit.generator.serving import PATIENCE, Serving
from polybit.generator.speculative import Drafter
from polybit.generator.step_limits import step_limits
from polybit.generator.stream import Stream, closing_all
from polybit.model.model import Model
from polybit.text import ChatTemplate, Message, Tokenizer

Prompt = str | list[int] | tuple[int, ...]
Progress = Callable[[int, int], None]  # prompts answered, prompts in all


class Engine:
    """A model, its tokenizer and a K/V pool. All requests run together, from whatever threads and loops they come."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        pool: KVPool,
        folder: Path,
        use_graphs: bool = True,
        limits: Limits | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """`folder`: where the chat template lies. `use_graphs`: where the model can. `limits`: of a step.

        `drafter`: guesses tokens, which are tried out several in a step.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.pool = pool
        self.folder = folder
        self.context = min(model.max_seq_len, pool.num_tokens)  # tokens of one prompt and its answer
        self.drafter = drafter
        self._num_rows = model.spec.embedding.num_rows  # token ids that a prompt may hold
        limits = limits or step_limits(model)
        if drafter is not None:
            self.context = min(self.context, drafter.max_seq_len)
            self._num_rows = min(self._num_rows, drafter.num_rows)
            limits = replace(limits, guesses=drafter.num_tokens)
        self.vocab_size = min(tokenizer.vocab_size, self._num_rows)  # tokens that may be drawn
        graphs = decode_graphs(model, pool, use_graphs, limits.guesses)
        runner = Runner(model, pool, self.vocab_size, graphs, drafter)
        self._serving = Serving(runner, limits)
        self._background = Background(self._serving)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises ConfigError where the model has none."""
        return ChatTemplate.open(self.folder, self.tokenizer.special_tokens.names)

    # ---- generation

    @overload
    def generate(
        self, prompt: str | tuple[int, ...], params: SamplingParams | None = None, **fields: Any
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | list[SamplingParams] | None = None,
        *,
        progress: Progress | None = None,
        return_errors: Literal[False] = False,
        **fields: Any,
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | list[SamplingParams] | None = None,
        *,
        progress: Progress | None = None,
        return_errors: bool,
        **fields: Any,
    ) -> list[Completion | PolybitError]: ...

    @overload
    def generate(self, prompt: list[int], params: SamplingParams | None = None, **fields: Any) -> Completion: ...

    def generate(
        self,
        prompt: Any,
        params: Any = None,
        *,
        progress: Progress | None = None,
        return_errors: bool = False,
        **fields: Any,
    ) -> Any:
        """Continue `prompt`: text, token ids, or a list of such prompts, which run together.

        `fields` are those of SamplingParams. Prompt i of a list has seed + i, or `params[i]` where that is a list.
        Special tokens in the text count as such, and BOS is put in front where the model wants it; ids are taken as
        they are. Raises RequestError for whatever cannot be served, before anything runs, and other errors when they
        occur. With `return_errors` an error stands in its prompt's place instead, and the others are answered.
        """
        check_callback("progress", progress, RequestError)
        if not _is_list(prompt):
            return self.stream(prompt, params, **fields).drain()
        answers = self._begin_all(prompt, params, fields, return_errors)
        streams = [answer for answer in answers if isinstance(answer, Stream)]
        with closing_all(streams):
            for count, stream in enumerate(self._by_end(streams), len(answers) - len(streams) + 1):
                if stream.error is not None and not return_errors:
                    raise stream.error
                if progress is not None:
                    progress(count, len(answers))
        return [_outcome(answer) for answer in answers]

    async def generate_async(
        self, prompt: Any, params: Any = None, *, return_errors: bool = False, **fields: Any
    ) -> Any:
        """`generate` for an event loop, which goes on meanwhile. Cancelling it gives the requests up."""
        if not _is_list(prompt):
            with self.stream(prompt, params, **fields) as stream:
                return await stream.finished()
        answers = self._begin_all(prompt, params, fields, return_errors)
        streams = [answer for answer in answers if isinstance(answer, Stream)]
        with closing_all(streams):
            for stream in streams:
                with suppress(*([PolybitError] if return_errors else [])):
                    await stream.finished()
        return [_outcome(answer) for answer in answers]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        patience: int | None = PATIENCE,
        own_filter: Filter | None = None,
        revise: Revise | None = None,
        **fields: Any,
    ) -> Stream:
        """As `generate`, but yields the text piece by piece, to `for` or `async for`.

        `patience`: how many later requests may start first where they fit into the cache and this one does not yet;
        None: any number. `own_filter`: what the answer's tokens may be. `revise`: gets each token that was drawn, with
        what SamplingParams asks to be told of it, and says which is to stand there.
        """
        ids = self.prompt_ids(prompt)
        _check_patience(patience)
        sequence = self._sequence(ids, with_fields(params, fields), ids, own_filter, revise)
        return self._begin(sequence, patience)

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
    ) -> Stream:
        """As `chat`, but yields the text piece by piece."""
        variables = _checked_variables(template_variables)
        prompt = self.chat_template.render(messages, **variables)
        ids = self._text_ids(prompt, add_bos=False)
        return self._begin(self._sequence(ids, with_fields(params, fields), continues=()))

    # ---- for those who make the steps themselves

    def step(self) -> bool:
        """One pass through the model for all requests; whether there were any. `Stream.ready` has what came out."""
        if self._serving.is_idle:
            return False
        self._serving.step()
        return True

    # ---- prompts

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, checked against the model's vocabulary."""
        if isinstance(prompt, str):
            return self._text_ids(prompt, add_bos=self.tokenizer.adds_bos or self.model.spec.needs_bos)
        return _checked_ids(prompt, self._num_rows)

    def _text_ids(self, text: str, add_bos: bool) -> list[int]:
        """A tokenizer may have more tokens than its model has rows: some were added without training."""
        ids, size = self.tokenizer.encode(text, add_bos=add_bos), self._num_rows
        beyond = next((token for token in ids if token >= size), None)
        if beyond is not None:
            raise RequestError(
                f"the prompt holds token {beyond} ({self.tokenizer.token_of(beyond)!r}), but the model's last is "
                f"{size - 1}; leave it out, or take the tokenizer files of this very model"
            )
        return ids

    def _begin_all(
        self, prompts: list[Prompt], params: Any, fields: dict[str, Any], return_errors: bool
    ) -> list[Stream | PolybitError]:
        """All prompts are checked before the first is on its way."""
        if isinstance(params, list) and len(params) != len(prompts):
            raise RequestError(
                f"params has {len(params)} entries for {len(prompts)} prompts; give one for each, or one"
            )
        checked: list[Sequence | PolybitError] = []
        for i, prompt in enumerate(prompts):
            wanted = _params_of(i, params, fields)
            try:
                ids = self.prompt_ids(prompt)
                checked.append(self._sequence(ids, wanted, continues=ids))
            except RequestError as error:
                if not return_errors:
                    raise RequestError(f"prompts[{i}]: {error}") from None
                checked.append(error)
        return [self._begin(one) if isinstance(one, Sequence) else one for one in checked]

    def _sequence(
        self,
        ids: list[int],
        params: SamplingParams,
        continues: Collection[int],
        own_filter: Filter | None = None,
        revise: Revise | None = None,
    ) -> Sequence:
        negative = self._negative_ids(params.negative_prompt) if params.is_guided else None
        room = self._room_after(ids) if negative is None else self._room_after_both(ids, negative)
        return new_sequence(ids, params, self.tokenizer, self.vocab_size, room, continues, negative, own_filter, revise)

    def _negative_ids(self, prompt: Any) -> list[int]:
        try:
            return self.prompt_ids(prompt)
        except RequestError as error:
            raise RequestError(f"negative_prompt: {error}") from None

    def _begin(self, sequence: Sequence, patience: int | None = PATIENCE) -> Stream:
        self._serving.submit(sequence, patience)
        return Stream(sequence, self._serving, self._background)

    def _by_end(self, streams: list[Stream]) -> Iterator[Stream]:
        """Each when it has ended; makes the steps meanwhile."""
        left = streams
        while left:
            seen = self._serving.num_ended
            ended = {stream for stream in left if stream.has_ended}
            yield from ended
            left = [stream for stream in left if stream not in ended]
            if left:
                self._serving.wait(partial(self._has_ended_beside, seen))

    def _has_ended_beside(self, seen: int) -> bool:
        """Whether more requests than `seen` have ended; much less work than to look at each."""
        return self._serving.num_ended > seen

    def _room_after(self, ids: list[int]) -> int:
        if not ids:
            raise RequestError("the prompt is empty; give at least one token")
        room = self.context - len(ids)
        if room < 1:
            reach, cached = self.model.max_seq_len, self.pool.num_tokens
            larger = f", or load with a larger --cache-tokens (cache_tokens, now {cached}; the model reaches {reach})"
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.context} including the answer; "
                f"shorten it{larger if reach > cached else ''}"
            )
        return room

    def _room_after_both(self, ids: list[int], negative: list[int]) -> int:
        """Both grow, in pages of their own."""
        if not negative:
            raise RequestError("the negative prompt is empty; give at least one token")
        most = self._room_after(max(ids, negative, key=len))
        room = bisect_right(range(most + 1), self.pool.book.total, key=lambda n: _pages_of(ids, negative, n)) - 1
        if room < 1:
            raise RequestError(
                f"prompt and negative prompt have {len(ids)} and {len(negative)} tokens, but the pool holds "
                f"{self.pool.num_tokens} including the answer, twice; shorten them, or load with a larger "
                "--cache-tokens (cache_tokens)"
            )
        return room


def _pages_of(ids: list[int], negative: list[int], answer: int) -> int:
    return sum(pages_for(len(prompt) + answer) for prompt in (ids, negative))


def _outcome(answer: Stream | PolybitError) -> Completion | PolybitError:
    if isinstance(answer, Stream):
        return answer.completion if answer.error is None else answer.error
    return answer


def _params_of(i: int, params: Any, fields: dict[str, Any]) -> SamplingParams:
    """Of prompt i of a list."""
    if isinstance(params, list):
        return with_fields(params[i], fields)
    wanted = with_fields(params, fields)
    return wanted if wanted.seed is None else replace(wanted, seed=wanted.seed + i)


def _is_list(prompt: Any) -> TypeGuard[list[Prompt]]:
    """Whether it holds prompts, good or bad, and not the ids of one."""
    return isinstance(prompt, list) and any(isinstance(one, (str, list, tuple)) for one in prompt)


def _check_patience(given: Any) -> None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 0):
        raise RequestError(f"patience is {given!r:.60}, expected a whole number of at least 0, or None")


def _checked_variables(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise RequestError(f"template_variables is {given!r:.60}, expected a dict of names and values, or None")
    return given


def _checked_ids(prompt: Any, size: int) -> list[int]:
    if not isinstance(prompt, (list, tuple)):
        raise RequestError(f"the prompt is of type {type(prompt).__name__}, expected text or a list of token ids")
    if isinstance(prompt, tuple) and any(isinstance(one, (str, list, tuple)) for one in prompt):
        raise RequestError("the prompt is a tuple that holds prompts; give several prompts as a list")
    for i, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise RequestError(f"prompt[{i}] is {token!r}, expected a token id from 0 to {size - 1}")
    return list(prompt)
