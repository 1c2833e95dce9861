"""All requests of an engine on their way together. Whoever waits for a token makes the next step, for everyone.

There is no thread of its own: of those who wait, one makes the step, and the others wait for its end. So nothing runs
while nobody asks, and a step's numbers do not depend on who made it.
"""

import threading
from collections import deque
from collections.abc import Callable

import torch

from polybit.errors import KernelError, OutOfMemory, PolybitError
from polybit.generator.runner import Runner
from polybit.generator.sampling import Drawn
from polybit.generator.scheduler import Limits, Plan, Scheduler
from polybit.generator.sequence import Sequence

PATIENCE = 4  # later requests that may start before one that does not fit yet

Told = Callable[[], None]


class Serving:
    """Safe to use from several threads."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self._runner = runner
        self._scheduler = Scheduler[Sequence](runner.pool.book, limits)
        self._state = threading.Condition(threading.Lock())  # not one that its holder may take again: see `abandon`
        self._is_stepping = False
        self._arrived = deque[tuple[Sequence, int | None]]()
        self._gone = deque[Sequence]()
        self._told: list[Told] = []
        self.num_ended = 0  # of all requests so far

    def submit(self, sequence: Sequence, patience: int | None = PATIENCE) -> None:
        """Take part from the next step on that has room. `patience` is the scheduler's."""
        self._arrived.append((sequence, patience))

    def cancel(self, sequence: Sequence) -> None:
        """Nobody wants it any more. Its pages are free at once, or at the end of the step that is being made."""
        self._give_up(sequence)
        self.tidy()

    def tidy(self) -> None:
        """Let newcomers in and leavers out; a step that is being made does so at its end."""
        with self._state:
            if not self._is_stepping:
                self._tidy()

    def abandon(self, sequence: Sequence) -> None:
        """`cancel` from where Python collects garbage, which may be anywhere: in the middle of these methods too."""
        self._give_up(sequence)
        if self._state.acquire(blocking=False):
            try:
                if not self._is_stepping:
                    self._tidy()
            finally:
                self._state.release()

    def _give_up(self, sequence: Sequence) -> None:
        if not sequence.has_ended:
            sequence.is_cancelled = True
            self._gone.append(sequence)

    def tell(self, told: Told) -> None:
        """Call `told` after every step, on the thread that made it."""
        self._told.append(told)

    def tell_no_more(self, told: Told) -> None:
        self._told.remove(told)

    @property
    def is_idle(self) -> bool:
        return not self._arrived and not len(self._scheduler)

    # ---- steps

    def wait(self, has_news: Callable[[], bool]) -> None:
        """Return when `has_news` holds; until then make steps, or let others make them."""
        while not has_news():
            self.step(has_news)

    def step(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Make a step for everyone, unless `unless` comes true while someone else makes one."""
        with self._state:
            while self._is_stepping and not unless():
                self._state.wait()
            if unless():
                return
            self._is_stepping = True
        try:
            self._step()
        finally:
            with self._state:
                self._is_stepping = False
                self._tidy()
                self._state.notify_all()
        for told in tuple(self._told):
            told()

    def _step(self) -> None:
        self._tidy()
        plan: Plan[Sequence] | None = None
        try:
            plan = self._scheduler.plan()
            if plan.is_empty:
                self._refuse_first()
            else:
                self._carry_out(plan)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for this step must hear it
            for sequence in [part.sequence for part in plan.parts] if plan and plan.parts else self._scheduler:
                if not sequence.has_ended:
                    self._fail(sequence, error)
        except BaseException:  # Ctrl-C, in the thread that happens to make the step
            self._scheduler.interrupted(plan)
            raise

    def _carry_out(self, plan: Plan[Sequence]) -> None:
        for sequence in plan.started:
            sequence.begin()
        for sequence, said in self._runner.run(plan):
            if isinstance(said, PolybitError):
                self._fail(sequence, self._runner.explained(said, sequence))
            else:
                self._accept(sequence, said)
        self._scheduler.stored(plan)

    def _accept(self, sequence: Sequence, drawn: list[Drawn]) -> None:
        try:
            sequence.accept_all(drawn)
        except PolybitError as error:
            self._fail(sequence, error)
            return
        if sequence.finish_reason is not None:
            self._remove(sequence)

    def _refuse_first(self) -> None:
        """Nobody can move: the pool's pages are held by sequences of someone else."""
        for sequence in self._scheduler:
            book = self._runner.pool.book
            self._fail(
                sequence,
                OutOfMemory(
                    f"{sequence.num_lacking} pages of the K/V pool are needed, but another engine holds "
                    f"{book.num_held} of its {book.total}; end what runs there, or load with a larger --cache-tokens "
                    "(cache_tokens)"
                ),
            )
            return

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End this request alone; nobody may use what it stored."""
        sequence.error = _typed(error)
        self._remove(sequence, is_sound=False)

    def _remove(self, sequence: Sequence, is_sound: bool = True) -> None:
        self._scheduler.remove(sequence, is_sound)
        self.num_ended += 1

    def _tidy(self) -> None:
        while self._arrived:
            self._scheduler.add(*self._arrived.popleft())
        while self._gone:
            self._remove(self._gone.popleft())


def _typed(error: Exception) -> PolybitError:
    """An error of polybit's own that says the same."""
    if isinstance(error, PolybitError):
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    typed: PolybitError
    if isinstance(error, torch.OutOfMemoryError):
        typed = OutOfMemory(
            f"a step lacks memory ({reason}); load with a smaller --cache-tokens (cache_tokens) or max_batch"
        )
    else:
        typed = KernelError(f"a step failed: {reason}; all requests that took part in it ended")
    typed.__cause__ = error
    return typed
