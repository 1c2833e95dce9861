"""ExLlamaV2StreamingGenerator: one text, piece by piece, as long as the caller asks for more."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.generator.building import build_engine
from exllamav2.generator.job import single_row
from exllamav2.generator.sampler import Settings, sampling_params
from exllamav2.model import ExLlamaV2
from exllamav2.refusal import refuse
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import RequestError
from polybit.generator import Stream


class ExLlamaV2StreamingGenerator:
    def __init__(
        self,
        model: ExLlamaV2,
        cache: ExLlamaV2Cache,
        tokenizer: ExLlamaV2Tokenizer,
        draft_model: Any = None,
        draft_cache: Any = None,
        num_speculative_tokens: int = 5,
    ) -> None:
        refuse("ExLlamaV2StreamingGenerator", draft_model=draft_model, draft_cache=draft_cache)
        self.model, self.cache, self.tokenizer = model, cache, tokenizer
        self._engine = build_engine(model, cache, tokenizer)
        self._stop_conditions: Collection[int | str] = self._engine.tokenizer.eos_ids[:1]
        self._stream: Stream | None = None
        self._num_told = 0
        self._num_streamed = 0  # tokens, since the counts were reset
        self.speculative_ngram = False  # refused when a text begins

    def warmup(self) -> None:
        """Nothing to warm up."""

    def set_stop_conditions(self, stop_conditions: Collection[int | str]) -> None:
        """Token ids and texts that end the streams to come; by default the model's end token."""
        self._stop_conditions = stop_conditions

    def begin_stream_ex(
        self,
        input_ids: Tensor,
        gen_settings: Settings,
        token_healing: bool = False,
        loras: Any = None,
        input_mask: Any = None,
        position_offsets: Any = None,
        return_probabilities: bool = False,
        return_top_tokens: int = 0,
        return_logits: bool = False,
        abort_event: Any = None,
        input_embeddings: Any = None,
        decode_special_tokens: bool = False,
        banned_strings: Any = None,
        filters: Any = None,
        filter_prefer_eos: bool = False,
    ) -> None:
        """Start a text that follows input_ids [1, n]; an earlier one ends."""
        refuse(
            "ExLlamaV2StreamingGenerator.begin_stream_ex",
            speculative_ngram=self.speculative_ngram,
            loras=loras,
            input_mask=input_mask,
            position_offsets=position_offsets,
            return_probabilities=return_probabilities,
            return_top_tokens=return_top_tokens,
            return_logits=return_logits,
            abort_event=abort_event,
            input_embeddings=input_embeddings,
            filters=filters,
            filter_prefer_eos=filter_prefer_eos,
        )
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
        )
        self._stream = self._engine.stream(single_row(input_ids), params)
        self._num_told = 0

    def stream_ex(self, ban_tokens: Any = None) -> dict[str, Any]:
        """The next piece: `chunk`, `chunk_token_ids` [1, n], and `eos` where the text has ended."""
        refuse("ExLlamaV2StreamingGenerator.stream_ex", ban_tokens=ban_tokens)
        if self._stream is None:
            raise RequestError("no stream to continue; call begin_stream_ex first")
        chunk = next(self._stream, "")
        completion = self._stream.completion
        certain = completion.tokens[: len(completion.tokens) - completion.num_held]
        tokens, self._num_told = certain[self._num_told :], len(certain)
        self._num_streamed += len(tokens)
        eos = completion.finish_reason is not None
        return {"chunk": chunk, "eos": eos, "chunk_token_ids": torch.tensor([tokens], dtype=torch.int64)}

    def ngram_preload(self, input_ids: Tensor) -> None:
        """Refused: nothing is drafted."""
        raise RequestError("ExLlamaV2StreamingGenerator.ngram_preload: drafts are not supported by polybit yet")

    def reset_sd_stats(self) -> None:
        """Count anew."""
        self._num_streamed = 0

    def get_sd_stats(self) -> tuple[float, float, int, int, int]:
        """Efficiency and accuracy of drafts, tokens in all, drafted, accepted: there are no drafts."""
        return 0.0, 0.0, self._num_streamed, 0, 0

    def begin_stream(self, input_ids: Tensor, gen_settings: Settings, token_healing: bool = False) -> None:
        """The older name."""
        self.begin_stream_ex(input_ids, gen_settings, token_healing)

    def stream(self) -> tuple[str, bool, Tensor]:
        """The older name: chunk, eos, chunk_token_ids."""
        result = self.stream_ex()
        return result["chunk"], result["eos"], result["chunk_token_ids"]
