"""Timer: how long a block took."""

import time
from types import TracebackType


class Timer:
    """`with Timer() as t: ...`, then `t.interval` in seconds."""

    interval = 0.0

    def __enter__(self) -> "Timer":
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.interval = time.perf_counter() - self._start
