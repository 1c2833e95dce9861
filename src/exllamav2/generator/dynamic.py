"""ExLlamaV2DynamicGenerator. In this first form its jobs run one after another, in the order of the queue."""

import threading
from collections import deque
from collections.abc import Collection
from itertools import count
from typing import Any, overload

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.generator.building import build_engine
from exllamav2.generator.job import ExLlamaV2DynamicJob, Result
from exllamav2.generator.sampler import Settings
from exllamav2.model import ExLlamaV2
from exllamav2.refusal import refuse
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import RequestError


class ExLlamaV2DynamicGenerator:
    def __init__(
        self,
        model: ExLlamaV2,
        cache: ExLlamaV2Cache,
        tokenizer: ExLlamaV2Tokenizer,
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        max_chunk_size: int | None = None,
        max_q_size: int = 8,
        draft_model: Any = None,
        draft_cache: Any = None,
        num_draft_tokens: int = 4,
        use_ngram_draft: bool = False,
        max_ngram: int = 4,
        max_sampling_threads: int = 16,
        min_sampling_threads: int = 3,
        paged: bool = True,
        filter_background_eval: bool = True,
    ) -> None:
        """Batch, chunk and thread sizes bound memory and speed, which polybit chooses; the text is the same."""
        refuse(
            "ExLlamaV2DynamicGenerator",
            max_seq_len=max_seq_len,
            draft_model=draft_model,
            draft_cache=draft_cache,
            use_ngram_draft=use_ngram_draft,
        )
        self.model, self.cache, self.tokenizer = model, cache, tokenizer
        self._engine = build_engine(model, cache, tokenizer)
        self._jobs: deque[ExLlamaV2DynamicJob] = deque()
        self._serials = count(1)

    def warmup(self) -> None:
        """Nothing to warm up."""

    # ---- the queue

    @overload
    def enqueue(self, job: ExLlamaV2DynamicJob) -> int: ...

    @overload
    def enqueue(self, job: list[ExLlamaV2DynamicJob]) -> list[int]: ...

    def enqueue(self, job: ExLlamaV2DynamicJob | list[ExLlamaV2DynamicJob]) -> int | list[int]:
        """Add to the queue; returns serial numbers. Raises RequestError for a job that can never fit the cache."""
        if isinstance(job, list):
            return [self.enqueue(one) for one in job]
        serial = next(self._serials)
        job.enter(self._engine, serial)
        self._jobs.append(job)
        return serial

    def iterate(self) -> list[Result]:
        """Generate the next piece of text of the first job; [] where there is none."""
        if not self._jobs:
            return []
        result = self._jobs[0].advance(self._engine)
        if result["eos"]:
            self._jobs.popleft()
        return [result]

    def num_remaining_jobs(self) -> int:
        return len(self._jobs)

    def cancel(self, job: ExLlamaV2DynamicJob) -> None:
        """Drop a job, whether it runs, waits or has ended."""
        job.cancel()
        if job in self._jobs:
            self._jobs.remove(job)

    def clear_queue(self) -> None:
        """Drop all jobs."""
        while self._jobs:
            self._jobs.popleft().cancel()

    # ---- all at once

    def generate(
        self,
        prompt: str | list[str],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        seed: int | None = None,
        gen_settings: Settings | list[Settings] | None = None,
        token_healing: bool = False,
        encode_special_tokens: bool = False,
        decode_special_tokens: bool = False,
        stop_conditions: Collection[int | str] | None = None,
        add_bos: bool = False,
        abort_event: threading.Event | None = None,
        completion_only: bool = False,
        filters: Any = None,
        filter_prefer_eos: bool = False,
        return_last_results: bool = False,
        embeddings: Any = None,
        banned_strings: Any = None,
    ) -> str | list[str] | None:
        """The text of each prompt with its completion; None where `abort_event` was set. Prompt i has seed + i."""
        refuse("ExLlamaV2DynamicGenerator.generate", return_last_results=return_last_results)
        prompts = _check_prompts([prompt] if isinstance(prompt, str) else prompt)
        settings = gen_settings if isinstance(gen_settings, list) else [gen_settings] * len(prompts)
        if len(settings) != len(prompts):
            raise RequestError(f"gen_settings has {len(settings)} entries for {len(prompts)} prompts")
        jobs = [
            ExLlamaV2DynamicJob(
                self.tokenizer.encode(text, add_bos=add_bos, encode_special_tokens=encode_special_tokens),
                max_new_tokens,
                min_new_tokens,
                gen_settings=setting,
                seed=None if seed is None else seed + i,
                stop_conditions=stop_conditions,
                decode_special_tokens=decode_special_tokens,
                filters=filters,
                filter_prefer_eos=filter_prefer_eos,
                token_healing=token_healing,
                banned_strings=banned_strings,
                embeddings=embeddings,
            )
            for i, (text, setting) in enumerate(zip(prompts, settings, strict=True))
        ]
        if not self._finish(jobs, abort_event):
            return None
        texts = [("" if completion_only else p) + job.full_completion for p, job in zip(prompts, jobs, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def _finish(self, jobs: list[ExLlamaV2DynamicJob], abort_event: threading.Event | None) -> bool:
        """Run the queue until it is empty; whether it was not aborted. No job is left behind by an error."""
        try:
            self.enqueue(jobs)
            while self.num_remaining_jobs():
                if abort_event is not None and abort_event.is_set():
                    return False
                self.iterate()
            return True
        finally:
            self.clear_queue()


def _check_prompts(prompts: Any) -> list[str]:
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise RequestError("prompt must be a text or a list of texts; pairs for CFG are not supported by polybit yet")
    return prompts
