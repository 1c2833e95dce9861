"""ExLlamaV2DynamicJob: one prompt on its way through the dynamic generator."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exllamav2.generator.reports import all_logits, tables
from exllamav2.generator.sampler import Settings, sampling_params
from exllamav2.generator.starting import Rows, begin, rows_of
from exllamav2.refusal import refuse
from polybit.cache import PAGE_TOKENS, pages_for
from polybit.errors import PolybitError, RequestError
from polybit.generator import Completion, Engine, Stream

Result = dict[str, Any]


@dataclass(frozen=True)
class JobSequence:
    """One of a job's texts; for CFG there are two."""

    input_ids: Tensor  # [1, n], of the prompt
    sequence_ids: Tensor  # [1, n], with the answer so far


class ExLlamaV2DynamicJob:
    """`full_completion` is its text so far."""

    def __init__(
        self,
        input_ids: Tensor | list[Tensor],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        max_skips: int | None = 4,
        gen_settings: Settings | None = None,
        seed: int | None = None,
        stop_conditions: Collection[int | str] | None = None,
        decode_special_tokens: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        return_probs: bool = False,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        token_healing: bool = False,
        identifier: object = None,
        banned_strings: list[str] | None = None,
        embeddings: Any = None,
    ) -> None:
        """input_ids [1, n]; for CFG two of them in a list, or padded on the left in one tensor [2, n], prompt first.

        `max_skips`: later jobs that may start first where this one does not fit; None: any.
        """
        refuse("ExLlamaV2DynamicJob", embeddings=embeddings)
        self.identifier = identifier
        self.serial: int | None = None
        self.full_completion = ""
        self._input_ids, self._rows = input_ids, rows_of(input_ids, pad_id=None)  # until it is known what padding is
        self._settings, self._filters, self._prefers_eos = gen_settings, filters, filter_prefer_eos
        self._num_top, self._wants_probs, self._wants_logits = return_top_tokens, return_probs, return_logits
        self._params = sampling_params(
            gen_settings,
            max_new_tokens,
            stop_conditions or (),
            seed,
            decode_special_tokens,
            min_tokens=min_new_tokens,
            token_healing=token_healing,
            banned_strings=tuple(banned_strings or ()),
            logprobs=return_top_tokens if return_top_tokens or return_probs else None,
            return_logits=return_logits,
        )
        self._patience = max_skips
        self._stream: Stream | None = None
        self._num_told = self._num_suppressed_told = self._num_suppressed_tokens_told = 0
        self._num_read: int | None = None  # tokens of the prompt; None: it waits

    def enter(self, engine: Engine, serial: int, max_seq_len: int) -> None:
        """Join the queue. Raises RequestError where the job can never fit the cache."""
        self._rows = rows_of(self._input_ids, engine.tokenizer.pad_id)
        _check_room(self._rows, self._params.max_tokens or 0, engine, max_seq_len)
        self.serial = serial
        self._stream = begin(
            engine, self._rows, self._settings, self._params, self._filters, self._prefers_eos, self._patience
        )

    @property
    def sequences(self) -> list[JobSequence]:
        answer = () if self._stream is None else self._stream.completion.tokens
        return [JobSequence(torch.tensor([row]), torch.tensor([[*row, *answer]])) for row in self._rows]

    @property
    def new_tokens(self) -> int:
        return 0 if self._stream is None else len(self._stream.completion.tokens)

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, which others had read before."""
        return 0 if self._stream is None else self._stream.completion.cached_tokens

    @property
    def cached_pages(self) -> int:
        return self.cached_tokens // PAGE_TOKENS

    @property
    def has_ended(self) -> bool:
        return self._stream is not None and self._stream.has_ended

    @property
    def error(self) -> PolybitError | None:
        """Why it ended without a result that says so."""
        return None if self._stream is None else self._stream.error

    def cancel(self) -> None:
        """Free what it holds."""
        if self._stream is not None:
            self._stream.close()

    def news(self, engine: Engine) -> list[Result]:
        """The original's result dictionaries for what the last step brought."""
        assert self._stream is not None
        results = self._reading(self._stream)
        completion = self._stream.completion
        if len(completion.tokens) - completion.num_held > self._num_told or completion.finish_reason is not None:
            results.append(self._streaming(engine, self._stream, completion))
        return results

    def _reading(self, stream: Stream) -> list[Result]:
        """That it started, and how far its prompt is read, as long as it is."""
        if not stream.has_begun or self._num_read == len(self._rows[0]):
            return []
        started = [] if self._num_read is not None else [self._result("started")]
        self._num_read = stream.prompt_tokens_read
        progress = {"curr_progress": self._num_read, "max_progress": len(self._rows[0])}
        return [*started, self._result("prefill") | progress]

    def _streaming(self, engine: Engine, stream: Stream, completion: Completion) -> Result:
        """Tokens come together with their text; those that have none yet wait, and at the end they are `held`."""
        result, text = self._result("streaming"), "".join(iter(stream.ready, None))
        tokens = completion.tokens[: len(completion.tokens) - completion.num_held]
        self.full_completion += text
        if text:
            result |= {"text": text} | self._of_tokens(completion, self._num_told, len(tokens))
            self._num_told = len(tokens)
        suppressed = completion.suppressed[self._num_suppressed_told :]
        if suppressed:
            result["suppressed_text"] = "".join(suppressed)
            result["suppressed_tokens"] = torch.tensor(
                [completion.suppressed_tokens[self._num_suppressed_tokens_told :]]
            )
            self._num_suppressed_told = len(completion.suppressed)
            self._num_suppressed_tokens_told = len(completion.suppressed_tokens)
        if completion.finish_reason is None:
            return result
        return result | self._ending(engine, completion) | self._held(engine, completion)

    def _held(self, engine: Engine, completion: Completion) -> Result:
        """Tokens of which no text was told, and the text that they would have."""
        if self._num_told == len(completion.tokens):
            return {}
        whole = engine.tokenizer.detokenizer(self._params.show_special, after=self._rows[0])
        text = "".join(map(whole.feed, completion.tokens)) + whole.finish()
        held = {"text": text.removeprefix(self.full_completion)}
        return {"held": held | self._of_tokens(completion, self._num_told, len(completion.tokens))}

    def _of_tokens(self, completion: Completion, start: int, stop: int) -> Result:
        """Ids [1, n], and as asked for: their probabilities [1, n], the likeliest beside each [1, n, k], logits."""
        told: Result = {"token_ids": torch.tensor([completion.tokens[start:stop]])}
        reports = completion.logprobs[start:stop]
        probs, top_tokens, top_probs = tables(reports, self._num_top)
        if self._wants_probs:
            told["token_probs"] = probs
        if self._num_top:
            told |= {"top_k_tokens": top_tokens, "top_k_probs": top_probs}
        if self._wants_logits:
            told["logits"] = all_logits(reports)
        return told

    def _result(self, stage: str) -> Result:
        named = {} if self.identifier is None else {"identifier": self.identifier}
        return {"job": self, "stage": stage, "serial": self.serial, "eos": False} | named

    def _ending(self, engine: Engine, completion: Completion) -> Result:
        drafted = {
            "accepted_draft_tokens": completion.accepted_draft_tokens,
            "rejected_draft_tokens": completion.rejected_draft_tokens,
        }
        told = _reason(engine, completion) | {
            "eos": True,
            "full_completion": completion.text,
            "new_tokens": len(completion.tokens),
            "prompt_tokens": completion.prompt_tokens,
            "time_enqueued": completion.queued_seconds,
            "time_prefill": completion.prefill_seconds,
            "time_generate": completion.decode_seconds,
            "cached_pages": completion.cached_tokens // PAGE_TOKENS,
            "cached_tokens": completion.cached_tokens,
        }
        return told if engine.drafter is None else told | drafted


def _reason(engine: Engine, completion: Completion) -> Result:
    match completion.stopped_by:
        case int(token):
            return {
                "eos_reason": "stop_token",
                "eos_triggering_token_id": token,
                "eos_triggering_token_str": engine.tokenizer.token_of(token),
            }
        case str(text):
            return {"eos_reason": "stop_string", "eos_triggering_string": text}
        case None:
            return {"eos_reason": "max_new_tokens" if completion.finish_reason == "length" else "end_filter"}


def _check_room(rows: Rows, max_tokens: int, engine: Engine, max_seq_len: int) -> None:
    wanted, longest = max(map(len, rows)) + max_tokens, min(engine.context, max_seq_len)
    if wanted > longest:
        raise RequestError(
            f"prompt and max_new_tokens are {wanted} tokens together, but the cache holds {longest}; "
            "shorten one, or make the cache larger"
        )
    pages, total = sum(pages_for(len(row) + max_tokens) for row in rows), engine.pool.book.total
    if pages > total:
        raise RequestError(
            f"both prompts with max_new_tokens take {pages} pages of {PAGE_TOKENS} tokens, but the cache has {total}; "
            "shorten one, or make the cache larger"
        )
