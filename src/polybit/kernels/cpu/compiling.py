"""Compiling makes millions of objects that last: Python need not look among them for garbage meanwhile."""

import gc

from numba.core import event


class WithoutCollection(event.Listener):
    """No garbage collection from the start of the outermost compilation to its end, a tenth of its time."""

    def __init__(self) -> None:
        self._depth = 0
        self._was_on = False

    def on_start(self, event: event.Event) -> None:
        if self._depth == 0:
            self._was_on = gc.isenabled()
            gc.disable()
        self._depth += 1

    def on_end(self, event: event.Event) -> None:
        self._depth -= 1
        if self._depth == 0 and self._was_on:
            gc.enable()


def compile_without_collection() -> None:
    """Numba compiles one function at a time, whatever the threads, so that starts and ends are nested."""
    event.register("numba:compile", WithoutCollection())
