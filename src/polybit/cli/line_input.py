"""Lines from the keyboard, with what the standard library has for editing and recalling them."""

from functools import partial

from polybit.cli.console import note

try:
    import readline
except ImportError:  # Windows
    CAN_EDIT = False
else:
    CAN_EDIT = True
    readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one; Python turns that off


def read_line(prompt: str, draft: str = "") -> str:
    """A line without its end, or several that were pasted; the user goes on from `draft`.

    Raises EOFError at the end of input.
    """
    if not draft:
        return input(prompt)
    if not CAN_EDIT:
        note(draft)
        return input(prompt)
    readline.set_startup_hook(partial(readline.insert_text, draft))
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook(None)
