"""ExLlamaV2DynamicJob: one prompt on its way through the dynamic generator."""

import time
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from exllamav2.generator.sampler import Settings, sampling_params
from exllamav2.refusal import refuse
from polybit.errors import RequestError
from polybit.generator import Completion, Engine, Stream

Result = dict[str, Any]


class ExLlamaV2DynamicJob:
    """`full_completion` is its text so far."""

    def __init__(
        self,
        input_ids: Tensor,
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
        """input_ids [1, n]. Jobs run in the order of the queue, so no job is ever skipped."""
        refuse(
            "ExLlamaV2DynamicJob",
            min_new_tokens=min_new_tokens,
            return_top_tokens=return_top_tokens,
            return_logits=return_logits,
            return_probs=return_probs,
            filters=filters,
            filter_prefer_eos=filter_prefer_eos,
            token_healing=token_healing,
            banned_strings=banned_strings,
            embeddings=embeddings,
        )
        self.identifier = identifier
        self.serial: int | None = None
        self.full_completion = ""
        self._ids = single_row(input_ids)
        self._params = sampling_params(gen_settings, max_new_tokens, stop_conditions or (), seed, decode_special_tokens)
        self._stream: Stream | None = None
        self._num_told = 0
        self._enqueued = self._started = time.perf_counter()

    def enter(self, engine: Engine, serial: int) -> None:
        """Raises RequestError where the job can never fit the cache."""
        wanted = len(self._ids) + (self._params.max_tokens or 0)
        if wanted > engine.context:
            raise RequestError(
                f"prompt and max_new_tokens are {wanted} tokens together, but the cache holds {engine.context}; "
                "shorten one, or make the cache larger"
            )
        self.serial, self._enqueued = serial, time.perf_counter()

    def advance(self, engine: Engine) -> Result:
        """Generate until some text is certain; the original's result dictionary for it."""
        if self._stream is None:
            self._started = time.perf_counter()
            self._stream = engine.stream(self._ids, self._params)
        piece = next(self._stream, "")
        completion = self._stream.completion
        self.full_completion += piece
        tokens, self._num_told = completion.tokens[self._num_told :], len(completion.tokens)
        result: Result = {"job": self, "stage": "streaming", "serial": self.serial, "eos": False}
        if self.identifier is not None:
            result["identifier"] = self.identifier
        if piece:
            result["text"] = piece
        if tokens:
            result["token_ids"] = torch.tensor([tokens])
        return result if completion.finish_reason is None else result | self._ending(engine, completion)

    def cancel(self) -> None:
        """Free what it holds."""
        if self._stream is not None:
            self._stream.close()

    def _ending(self, engine: Engine, completion: Completion) -> Result:
        return _reason(engine, completion.stopped_by) | {
            "eos": True,
            "full_completion": completion.text,
            "new_tokens": len(completion.tokens),
            "prompt_tokens": completion.prompt_tokens,
            "time_enqueued": self._started - self._enqueued,
            "time_prefill": completion.prefill_seconds,
            "time_generate": completion.decode_seconds,
            "cached_pages": 0,
            "cached_tokens": 0,
        }


def _reason(engine: Engine, stopped_by: int | str | None) -> Result:
    match stopped_by:
        case int(token):
            return {
                "eos_reason": "stop_token",
                "eos_triggering_token_id": token,
                "eos_triggering_token_str": engine.tokenizer.token_of(token),
            }
        case str(text):
            return {"eos_reason": "stop_string", "eos_triggering_string": text}
        case None:
            return {"eos_reason": "max_new_tokens"}


def single_row(input_ids: Any) -> list[int]:
    """The ids of a tensor [1, n] or [n]."""
    if not isinstance(input_ids, Tensor) or input_ids.shape[:-1] not in ((), (1,)):
        raise RequestError("input_ids must be one row of ids, [1, n]; batches and pairs for CFG are not supported yet")
    return [int(token) for token in input_ids.flatten().tolist()]
