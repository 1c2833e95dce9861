"""ExLlamaV2StreamingGenerator: one text, piece by piece, as long as the caller asks for more."""

import math
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.generator.building import build_drafter, build_engine
from exllamav2.generator.reports import all_logits, tables
from exllamav2.generator.sampler import Settings, sampling_params
from exllamav2.generator.starting import begin, rows_of
from exllamav2.model import ExLlamaV2
from exllamav2.refusal import refuse
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import RequestError
from polybit.generator import Engine, Stream
from polybit.generator.sampling import Report


class ExLlamaV2StreamingGenerator:
    def __init__(
        self,
        model: ExLlamaV2,
        cache: ExLlamaV2Cache,
        tokenizer: ExLlamaV2Tokenizer,
        draft_model: ExLlamaV2 | None = None,
        draft_cache: ExLlamaV2Cache | None = None,
        num_speculative_tokens: int = 5,
    ) -> None:
        """`speculative_ngram` may be set before a text begins: its own past guesses what follows."""
        self.model, self.cache, self.tokenizer = model, cache, tokenizer
        self.speculative_ngram = False
        self.speculative_ngram_max = 5
        self._num_guesses = num_speculative_tokens
        by_model = build_drafter(cache, tokenizer, draft_model, draft_cache, num_speculative_tokens, None)
        self._engine = build_engine(model, cache, tokenizer, drafter=by_model)
        self._stop_conditions: Collection[int | str] = self._engine.tokenizer.eos_ids[:1]
        self._stream: Stream | None = None
        self._prompt: list[int] = []
        self._abort_event: threading.Event | None = None
        self._num_top, self._wants_probs, self._wants_logits = 0, False, False
        self._num_told = self._num_suppressed_told = 0
        self._earlier = Counter[str]()  # tokens of texts before the present one
        self._uncounted = Counter[str]()  # those before the counts were reset

    def warmup(self) -> None:
        """Nothing to warm up."""

    @property
    def sequence_ids(self) -> Tensor | None:
        """The prompt and what followed it, [1, n]; None before the first stream."""
        if self._stream is None:
            return None
        return torch.tensor([[*self._prompt, *self._stream.completion.tokens]])

    def set_stop_conditions(self, stop_conditions: Collection[int | str]) -> None:
        """Token ids and texts that end the streams to come; by default the model's end token."""
        self._stop_conditions = stop_conditions

    def begin_stream_ex(
        self,
        input_ids: Tensor,
        gen_settings: Settings,
        token_healing: bool = False,
        loras: Any = None,
        input_mask: Tensor | None = None,
        position_offsets: Tensor | None = None,
        return_probabilities: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        abort_event: threading.Event | None = None,
        input_embeddings: Any = None,
        decode_special_tokens: bool = False,
        banned_strings: Any = None,
        filters: Any = None,
        filter_prefer_eos: bool = False,
    ) -> None:
        """Start a text that follows input_ids [1, n]; an earlier one ends. For CFG [2, n], padded on the left.

        input_mask, position_offsets: what the tokenizer says of the padding, or nothing. `abort_event`: once set, the
        text has ended.
        """
        refuse(
            "ExLlamaV2StreamingGenerator.begin_stream_ex",
            loras=loras,
            input_embeddings=input_embeddings,
        )
        rows = rows_of(input_ids, self._engine.tokenizer.pad_id, _num_padding(input_mask, position_offsets))
        if self._stream is not None:
            self._stream.close()
        params = sampling_params(
            gen_settings,
            None,
            self._stop_conditions,
            None,
            decode_special_tokens,
            token_healing=token_healing,
            banned_strings=tuple(banned_strings or ()),
            logprobs=return_top_tokens if return_top_tokens or return_probabilities else None,
            return_logits=return_logits,
        )
        self._earlier += self._present()
        self._prompt = rows[0]
        self._stream = begin(self._chosen_engine, rows, gen_settings, params, filters, filter_prefer_eos)
        self._abort_event = abort_event
        self._num_top, self._wants_probs, self._wants_logits = return_top_tokens, return_probabilities, return_logits
        self._num_told = self._num_suppressed_told = 0

    def stream_ex(self, ban_tokens: Collection[int] | None = None) -> dict[str, Any]:
        """The next piece: `chunk`, `chunk_token_ids` [1, n], and `eos` where the text has ended.

        As asked for: `probs` [1, n], `top_tokens` and `top_probs` [1, n, k], `logits` [1, n, V]; and `suppressed`, a
        banned text that was taken back. None of the tokens until then is one of `ban_tokens`.
        """
        if self._stream is None:
            raise RequestError("no stream to continue; call begin_stream_ex first")
        is_aborted = self._abort_event is not None and self._abort_event.is_set()
        if is_aborted:
            self._stream.close()
        chunk = "" if is_aborted else self._next_chunk(self._stream, self._known(ban_tokens or ()))
        completion = self._stream.completion
        certain = completion.tokens[: len(completion.tokens) - completion.num_held]
        tokens = certain[self._num_told :]
        result = {
            "chunk": chunk,
            "eos": is_aborted or completion.finish_reason is not None,
            "chunk_token_ids": torch.tensor([tokens], dtype=torch.int64),
            **self._of_tokens(completion.logprobs[self._num_told : len(certain)]),
        }
        if suppressed := completion.suppressed[self._num_suppressed_told :]:
            result["suppressed"] = "".join(suppressed)
        self._num_told, self._num_suppressed_told = len(certain), len(completion.suppressed)
        return result

    def _next_chunk(self, stream: Stream, banned: frozenset[int]) -> str:
        while (chunk := stream.ready()) is None and not stream.has_ended:
            if banned:
                stream.block(banned)
            self._chosen_engine.step()
        return next(stream, "") if chunk is None else chunk

    def _known(self, tokens: Collection[int]) -> frozenset[int]:
        if not all(token in range(self._engine.vocab_size) for token in tokens):
            raise RequestError(f"ban_tokens is {tokens!r:.60}, expected ids from 0 to {self._engine.vocab_size - 1}")
        return frozenset(tokens)

    def _of_tokens(self, reports: Sequence[Report]) -> dict[str, Any]:
        probs, top_tokens, top_probs = tables(reports, self._num_top)
        told: dict[str, Any] = {"probs": probs} if self._wants_probs else {}
        if self._num_top:
            told |= {"top_tokens": top_tokens, "top_probs": top_probs}
        if self._wants_logits and reports:
            told["logits"] = all_logits(reports)
        return told

    def ngram_preload(self, input_ids: Tensor) -> None:
        """Refused: only the text itself is looked at."""
        raise RequestError(
            "ExLlamaV2StreamingGenerator.ngram_preload: polybit looks n-grams up in the text itself; "
            "put what is to be repeated into the prompt"
        )

    def reset_sd_stats(self) -> None:
        """Count anew."""
        self._uncounted = self._earlier + self._present()

    def get_sd_stats(self) -> tuple[float, float, int, int, int]:
        """Accepted drafts as a share of tokens and of drafts; tokens in all, drafted, accepted."""
        counts = self._earlier + self._present() - self._uncounted
        total, accepted = counts["total"], counts["accepted"]
        drafted = accepted + counts["rejected"]
        return accepted / max(1, total), accepted / max(1, drafted), total, drafted, accepted

    def _present(self) -> Counter[str]:
        """Of the text that was begun last."""
        if self._stream is None:
            return Counter()
        done = self._stream.completion
        accepted, rejected = done.accepted_draft_tokens, done.rejected_draft_tokens
        return Counter(total=len(done.tokens), accepted=accepted, rejected=rejected)

    @property
    def _chosen_engine(self) -> Engine:
        return self._engine_by_ngrams if self.speculative_ngram else self._engine

    @cached_property
    def _engine_by_ngrams(self) -> Engine:
        drafter = build_drafter(self.cache, self.tokenizer, None, None, self._num_guesses, self.speculative_ngram_max)
        return build_engine(self.model, self.cache, self.tokenizer, drafter=drafter)

    def begin_stream(self, input_ids: Tensor, gen_settings: Settings, token_healing: bool = False) -> None:
        """The older name."""
        self.begin_stream_ex(input_ids, gen_settings, token_healing)

    def stream(self) -> tuple[str, bool, Tensor]:
        """The older name: chunk, eos, chunk_token_ids."""
        result = self.stream_ex()
        return result["chunk"], result["eos"], result["chunk_token_ids"]


def _num_padding(mask: Tensor | None, offsets: Tensor | None) -> list[int] | None:
    """Of each row, by what `padding_mask` and `return_offsets` give. Raises RequestError for other masks."""
    by_offset: list[int] | None = None if offsets is None else (-offsets).flatten().tolist()
    if mask is None:
        return by_offset
    is_padding = mask == -math.inf
    counts: list[int] = is_padding.sum(-1).tolist()
    on_the_left = torch.arange(mask.shape[-1]) < is_padding.sum(-1, keepdim=True)
    if not torch.equal(is_padding, on_the_left) or by_offset not in (None, counts):
        raise RequestError("input_mask hides more than padding on the left; use the tokenizer's padding_mask")
    return counts
