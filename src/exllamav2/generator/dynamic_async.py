"""ExLlamaV2DynamicGeneratorAsync and its jobs: the dynamic generator for an event loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from exllamav2.generator.dynamic import ExLlamaV2DynamicGenerator
from exllamav2.generator.job import ExLlamaV2DynamicJob, Result
from polybit.errors import PolybitError


class ExLlamaV2DynamicGeneratorAsync:
    """Steps are made on a thread, one after another, by a task of the loop that lives while there are jobs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As ExLlamaV2DynamicGenerator."""
        self.generator = ExLlamaV2DynamicGenerator(*args, **kwargs)
        self._jobs: dict[ExLlamaV2DynamicJob, ExLlamaV2DynamicJobAsync] = {}
        self._task: asyncio.Task[None] | None = None

    def enqueue(self, job: "ExLlamaV2DynamicJobAsync") -> int:
        """Jobs do this themselves when they are made."""
        serial = self.generator.enqueue(job.job)
        self._jobs[job.job] = job
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return serial

    async def cancel(self, job: "ExLlamaV2DynamicJobAsync") -> None:
        """Drop a job; `async for` over it ends."""
        self.generator.cancel(job.job)
        if self._jobs.pop(job.job, None) is not None:
            job.tell(None)

    async def close(self) -> None:
        """Drop all jobs, and let the task end."""
        for job in list(self._jobs.values()):
            await self.cancel(job)
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._jobs:
            for job, news in await asyncio.to_thread(self.generator.advance):
                if job in self._jobs:  # and was not cancelled meanwhile
                    self._tell(job, news)

    def _tell(self, job: ExLlamaV2DynamicJob, news: list[Result] | PolybitError) -> None:
        listener = self._jobs[job]
        for result in [news] if isinstance(news, PolybitError) else news:
            listener.tell(result)
        if job.has_ended:
            del self._jobs[job]
            listener.tell(None)


class ExLlamaV2DynamicJobAsync:
    """`async for result in job`: the results of ExLlamaV2DynamicJob. The error of a job is raised there."""

    def __init__(self, generator: ExLlamaV2DynamicGeneratorAsync, *args: Any, **kwargs: Any) -> None:
        """As ExLlamaV2DynamicJob, after the generator, whose queue it joins at once."""
        self.generator = generator
        self.job = ExLlamaV2DynamicJob(*args, **kwargs)
        self._news: asyncio.Queue[Result | PolybitError | None] = asyncio.Queue()
        generator.enqueue(self)

    def tell(self, news: Result | PolybitError | None) -> None:
        """None: there is no more."""
        self._news.put_nowait(news)

    async def cancel(self) -> None:
        await self.generator.cancel(self)

    async def __aiter__(self) -> AsyncIterator[Result]:
        while (news := await self._news.get()) is not None:
            if isinstance(news, PolybitError):
                raise news
            yield news
