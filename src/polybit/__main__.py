"""The `polybit` program; `python -m polybit` is the same."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """For a program's imports: they take a second, in which Ctrl-C ends it as it does later."""
    hears_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in the background
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # what is raised in the midst of torch's import aborts
    gc.disable()  # imports make hundreds of thousands of objects and no garbage
    yield
    gc.enable()
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    with importing():
        from polybit.cli.main import main as run
    run()


if __name__ == "__main__":
    main()
