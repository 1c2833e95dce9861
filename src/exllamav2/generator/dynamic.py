"""ExLlamaV2DynamicGenerator: jobs in a queue, all that fit at once, by `iterate`."""

import threading
from collections import deque
from collections.abc import Collection
from itertools import count
from typing import Any, overload

from exllamav2.cache import ExLlamaV2Cache
from exllamav2.generator.building import build_drafter, build_engine
from exllamav2.generator.job import ExLlamaV2DynamicJob, Result
from exllamav2.generator.sampler import Settings
from exllamav2.model import ExLlamaV2
from exllamav2.refusal import refuse
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from polybit.errors import PolybitError, RequestError
from polybit.generator.step_limits import MAX_BATCH

Prompt = str | tuple[str, str]


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
        draft_model: ExLlamaV2 | None = None,
        draft_cache: ExLlamaV2Cache | None = None,
        num_draft_tokens: int = 4,
        use_ngram_draft: bool = False,
        max_ngram: int = 4,
        max_sampling_threads: int = 16,
        min_sampling_threads: int = 3,
        paged: bool = True,
        filter_background_eval: bool = True,
    ) -> None:
        """max_batch_size: jobs that run at once, one where not `paged`. max_seq_len: tokens of a job. draft_model, with
        a draft_cache as large as `cache`, or use_ngram_draft: guess num_draft_tokens ahead; the text is the same.

        Chunk and thread sizes bound memory and speed, which polybit chooses; the text is the same.
        """
        if max_batch_size is not None and max_batch_size < 1:
            raise RequestError(f"ExLlamaV2DynamicGenerator: max_batch_size is {max_batch_size}, expected at least 1")
        self.model, self.cache, self.tokenizer = model, cache, tokenizer
        ngram = max_ngram if use_ngram_draft else None
        drafter = build_drafter(cache, tokenizer, draft_model, draft_cache, num_draft_tokens, ngram)
        self._engine = build_engine(model, cache, tokenizer, (max_batch_size or MAX_BATCH) if paged else 1, drafter)
        self._max_seq_len = max_seq_len or self._engine.context
        self._jobs: list[ExLlamaV2DynamicJob] = []
        self._untold: deque[list[Result] | PolybitError] = deque()  # of the last step
        self._serials = count(1)

    def warmup(self) -> None:
        """Nothing to warm up."""

    def set_loras(self, loras: Any) -> None:
        """None or [] is what there is."""
        refuse("ExLlamaV2DynamicGenerator.set_loras", loras=loras)

    def reset_page_table(self) -> None:
        """Let no later job find what earlier ones have stored."""
        for page in range(self.cache.pool.book.total):
            self.cache.pool.book.forget(page)

    def defrag_cache(self) -> None:
        """Nothing to do: a sequence's pages may lie anywhere."""

    def print_page_list(self, short: bool = True) -> None:
        """Refused: there is no such list."""
        raise RequestError(
            "ExLlamaV2DynamicGenerator.print_page_list: polybit keeps no list to print; "
            "cache.pool.book.num_held and num_free say how many pages are in use"
        )

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
        job.enter(self._engine, serial, self._max_seq_len)
        self._jobs.append(job)
        return serial

    def iterate(self) -> list[Result]:
        """One step of all jobs that fit, and what it brought; [] where there is none.

        Raises the error of a job that failed; it is gone then, and what the others did comes next time.
        """
        if not self._untold:
            self._untold.extend(news for _, news in self.advance())
        results: list[Result] = []
        while self._untold:
            news = self._untold[0]
            if isinstance(news, PolybitError):
                if results:
                    break
                self._untold.popleft()
                raise news
            results += news
            self._untold.popleft()
        return results

    def advance(self) -> list[tuple[ExLlamaV2DynamicJob, list[Result] | PolybitError]]:
        """One step: for each job its results, or why it failed."""
        self._engine.step()
        told = [(job, job.news(self._engine) if job.error is None else job.error) for job in list(self._jobs)]
        self._jobs = [job for job in self._jobs if not job.has_ended]
        return told

    def num_remaining_jobs(self) -> int:
        return len(self._jobs) + len(self._untold)

    def cancel(self, job: ExLlamaV2DynamicJob) -> None:
        """Drop a job, whether it runs, waits or has ended."""
        job.cancel()
        if job in self._jobs:
            self._jobs.remove(job)

    def clear_queue(self) -> None:
        """Drop all jobs."""
        for job in self._jobs:
            job.cancel()
        self._jobs.clear()
        self._untold.clear()

    # ---- all at once

    def generate(
        self,
        prompt: Prompt | list[Prompt],
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
    ) -> Any:
        """The text of each prompt with its completion; None where `abort_event` was set. Prompt i has seed + i.

        A prompt is a text, or for CFG a tuple of two, the negative one second. For a list of prompts `gen_settings` may
        be a list, and `filters` is a list of lists. With `return_last_results` a pair: the above, and the last result
        of each job.
        """
        is_list = isinstance(prompt, list)
        pairs = [_texts(one) for one in (prompt if isinstance(prompt, list) else [prompt])]
        settings = gen_settings if isinstance(gen_settings, list) else [gen_settings] * len(pairs)
        filtered = filters if is_list and filters else [filters] * len(pairs)
        for name, given in {"gen_settings": settings, "filters": filtered}.items():
            if not isinstance(given, list) or len(given) != len(pairs):
                raise RequestError(f"{name} is {given!r:.60}, expected a list of {len(pairs)}, one for each prompt")
        jobs = [
            ExLlamaV2DynamicJob(
                [self.tokenizer.encode(t, add_bos, encode_special_tokens=encode_special_tokens) for t in texts],
                max_new_tokens,
                min_new_tokens,
                gen_settings=setting,
                seed=None if seed is None else seed + i,
                stop_conditions=stop_conditions,
                decode_special_tokens=decode_special_tokens,
                filters=filtered[i],
                filter_prefer_eos=filter_prefer_eos,
                token_healing=token_healing,
                banned_strings=banned_strings,
                embeddings=embeddings,
            )
            for i, (texts, setting) in enumerate(zip(pairs, settings, strict=True))
        ]
        last = self._finish(jobs, abort_event)
        if last is None:
            return None
        whole = ["" if completion_only else texts[0] for texts in pairs]
        answers = [text + job.full_completion for text, job in zip(whole, jobs, strict=True)]
        found = (answers, [last[job] for job in jobs]) if return_last_results else (answers,)
        shaped = tuple(values if is_list else values[0] for values in found)
        return shaped if return_last_results else shaped[0]

    def _finish(
        self, jobs: list[ExLlamaV2DynamicJob], abort_event: threading.Event | None
    ) -> dict[ExLlamaV2DynamicJob, Result] | None:
        """Run the queue until it is empty: each job's last result; None: aborted. An error leaves no job behind."""
        last: dict[ExLlamaV2DynamicJob, Result] = {}
        try:
            self.enqueue(jobs)
            while self.num_remaining_jobs():
                if abort_event is not None and abort_event.is_set():
                    return None
                last |= {result["job"]: result for result in self.iterate()}
            return last
        finally:
            self.clear_queue()


def _texts(prompt: Any) -> tuple[str, ...]:
    texts = prompt if isinstance(prompt, tuple) else (prompt,)
    if len(texts) > 2 or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"prompt is {prompt!r:.60}, expected a text, a tuple of two for CFG, or a list of such")
    return texts
