"""ExLlamaV2DynamicJob: one prompt on its way through the dynamic generator."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from exllamav2.generator.sampler import Settings, sampling_params
from exllamav2.refusal import refuse
from polybit.cache import PAGE_TOKENS
from polybit.errors import PolybitError, RequestError
from polybit.generator import Completion, Engine, Stream
from polybit.generator.sampling import Report

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
        """input_ids [1, n]. `max_skips`: later jobs that may start first where this one does not fit; None: any."""
        refuse(
            "ExLlamaV2DynamicJob",
            return_logits=return_logits,
            filters=filters,
            filter_prefer_eos=filter_prefer_eos,
            embeddings=embeddings,
        )
        self.identifier = identifier
        self.serial: int | None = None
        self.full_completion = ""
        self._ids = single_row(input_ids)
        self._num_top, self._wants_probs = return_top_tokens, return_probs
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
        )
        self._patience = max_skips
        self._stream: Stream | None = None
        self._num_told = self._num_suppressed_told = 0  # tokens, and banned texts
        self._num_read: int | None = None  # tokens of the prompt; None: it waits

    def enter(self, engine: Engine, serial: int, max_seq_len: int) -> None:
        """Join the queue. Raises RequestError where the job can never fit the cache."""
        wanted, longest = len(self._ids) + (self._params.max_tokens or 0), min(engine.context, max_seq_len)
        if wanted > longest:
            raise RequestError(
                f"prompt and max_new_tokens are {wanted} tokens together, but the cache holds {longest}; "
                "shorten one, or make the cache larger"
            )
        self.serial = serial
        self._stream = engine.stream(self._ids, self._params, patience=self._patience)

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
        if not stream.has_begun or self._num_read == len(self._ids):
            return []
        started = [] if self._num_read is not None else [self._result("started")]
        self._num_read = stream.prompt_tokens_read
        progress = {"curr_progress": self._num_read, "max_progress": len(self._ids)}
        return [*started, self._result("prefill") | progress]

    def _streaming(self, engine: Engine, stream: Stream, completion: Completion) -> Result:
        """Tokens come together with their text; those that have none yet wait, and at the end they are `held`."""
        result, text = self._result("streaming"), "".join(iter(stream.ready, None))
        tokens = completion.tokens[: len(completion.tokens) - completion.num_held]
        self.full_completion += text
        if text:
            result |= {"text": text, "token_ids": torch.tensor([tokens[self._num_told :]])}
            result |= self._probabilities(completion.logprobs[self._num_told : len(tokens)])
            self._num_told = len(tokens)
        suppressed = completion.suppressed[self._num_suppressed_told :]
        if suppressed:
            result["suppressed_text"] = "".join(suppressed)
            self._num_suppressed_told = len(completion.suppressed)
        if completion.finish_reason is None:
            return result
        held = tokens[self._num_told :]
        return (
            result | self._ending(engine, completion) | ({"held": {"token_ids": torch.tensor([held])}} if held else {})
        )

    def _probabilities(self, reports: tuple[Report, ...]) -> Result:
        """As asked for: of the tokens, [1, n], and of the likeliest beside each, [1, n, k]; those dropped have 0."""
        told: Result = {}
        if self._wants_probs:
            told["token_probs"] = torch.tensor([[report.logprob for report in reports]]).exp()
        if self._num_top:
            rows = [[*report.likeliest, *[(0, -math.inf)] * self._num_top][: self._num_top] for report in reports]
            told["top_k_tokens"] = torch.tensor([[[token for token, _ in row] for row in rows]])
            told["top_k_probs"] = torch.tensor([[[logprob for _, logprob in row] for row in rows]]).exp()
        return told

    def _result(self, stage: str) -> Result:
        named = {} if self.identifier is None else {"identifier": self.identifier}
        return {"job": self, "stage": stage, "serial": self.serial, "eos": False} | named

    def _ending(self, engine: Engine, completion: Completion) -> Result:
        return _reason(engine, completion.stopped_by) | {
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
