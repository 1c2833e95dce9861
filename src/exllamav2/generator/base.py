"""ExLlamaV2BaseGenerator: whole completions, one call each."""

import threading
from typing import Any

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.generator.dynamic import ExLlamaV2DynamicGenerator, Prompt
from exllamav2.generator.filters import ExLlamaV2Filter
from exllamav2.generator.sampler import Settings
from exllamav2.model import ExLlamaV2
from exllamav2.refusal import refuse
from exllamav2.tokenizer import ExLlamaV2Tokenizer


class ExLlamaV2BaseGenerator:
    def __init__(self, model: ExLlamaV2, cache: ExLlamaV2Cache, tokenizer: ExLlamaV2Tokenizer) -> None:
        self.model, self.cache, self.tokenizer = model, cache, tokenizer
        self._dynamic = ExLlamaV2DynamicGenerator(model, cache, tokenizer)

    def warmup(self) -> None:
        """Nothing to warm up."""

    def full(self) -> bool:
        """Whether the last text filled the cache so that none may follow; it never does, as nothing is carried on."""
        return False

    def generate_simple(
        self,
        prompt: Prompt | list[Prompt],
        gen_settings: Settings,
        num_tokens: int,
        seed: int | None = None,
        token_healing: bool = False,
        encode_special_tokens: bool = False,
        decode_special_tokens: bool = False,
        loras: Any = None,
        stop_token: int | None = -1,
        add_bos: bool = False,
        abort_event: threading.Event | None = None,
        input_embeddings: Any = None,
        completion_only: bool = False,
        filters: list[ExLlamaV2Filter] | list[list[ExLlamaV2Filter]] | None = None,
        filter_prefer_eos: bool = False,
    ) -> str | list[str] | None:
        """The text of each prompt with its completion. `stop_token`: -1 for the model's end token, None for none."""
        refuse("ExLlamaV2BaseGenerator.generate_simple", loras=loras, input_embeddings=input_embeddings)
        stop = self.tokenizer.eos_token_id if stop_token == -1 else stop_token
        found: str | list[str] | None = self._dynamic.generate(
            prompt,
            num_tokens,
            seed=seed,
            gen_settings=gen_settings,
            token_healing=token_healing,
            encode_special_tokens=encode_special_tokens,
            decode_special_tokens=decode_special_tokens,
            stop_conditions=() if stop is None else (stop,),
            add_bos=add_bos,
            abort_event=abort_event,
            completion_only=completion_only,
            filters=filters,
            filter_prefer_eos=filter_prefer_eos,
        )
        return found
