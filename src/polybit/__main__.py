"""The `polybit` program; `python -m polybit` is the same."""

import gc
import os
import signal


def main() -> None:
    """Imports take a second, in which Ctrl-C ends the program as it does later."""
    hears_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in the background
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # what is raised in the midst of torch's import aborts
    gc.disable()  # imports make hundreds of thousands of objects and no garbage
    from polybit.cli.main import main as run

    gc.enable()
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
