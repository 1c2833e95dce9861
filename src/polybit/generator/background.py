"""Steps for those who cannot make them: the requests of event loops, which must never wait for a device."""

import asyncio
import contextlib
import threading

from polybit.generator.sequence import Sequence
from polybit.generator.serving import Serving

THREAD = "polybit steps"


class Background:
    """A thread that makes steps as long as a request of an event loop is on its way, and then ends."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._lock = threading.Lock()
        self._wanted = set[Sequence]()
        self._thread: threading.Thread | None = None
        self._loops = dict[asyncio.AbstractEventLoop, Wakeup]()

    async def next_step(self, sequence: Sequence) -> None:
        """Return after a step that was made while this one waited; at once where the sequence has ended."""
        wakeup = self._wakeup(asyncio.get_running_loop())
        waiting = wakeup.wait()
        if sequence.has_ended:  # asked last: its last step may have been told before this one waited
            return
        self._want(sequence)
        await waiting

    def _want(self, sequence: Sequence) -> None:
        with self._lock:
            self._wanted.add(sequence)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while self._is_wanted():
            self._serving.step(unless=lambda: all(sequence.has_ended for sequence in tuple(self._wanted)))
        self._serving.tidy()

    def _is_wanted(self) -> bool:
        with self._lock:
            self._wanted = {sequence for sequence in self._wanted if not sequence.has_ended}
            if not self._wanted:
                self._thread = None
            return bool(self._wanted)

    def _wakeup(self, loop: asyncio.AbstractEventLoop) -> "Wakeup":
        if loop not in self._loops:
            for closed in [other for other in self._loops if other.is_closed()]:
                self._serving.tell_no_more(self._loops.pop(closed).step_done)
            self._loops[loop] = Wakeup(loop)
            self._serving.tell(self._loops[loop].step_done)
        return self._loops[loop]


class Wakeup:
    """Those of one event loop who wait for a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []

    def wait(self) -> "asyncio.Future[None]":
        """In the loop's thread."""
        self._waiting.append(self._loop.create_future())
        return self._waiting[-1]

    def step_done(self) -> None:
        """In any thread."""
        if self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits in it any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():  # given up meanwhile
                future.set_result(None)
