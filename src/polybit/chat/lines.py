"""Lines to messages: one is one, and three quotes make several lines one."""

from collections.abc import Callable

SEVERAL_LINES = '"""'

ReadLine = Callable[[bool], str]  # whether it continues a message -> a line without its end; EOFError: no more


def read_message(read_line: ReadLine) -> str:
    """The next message, stripped; empty where the line was. Raises EOFError at the end of input.

    Three quotes that nothing closes hold all that is left.
    """
    text = read_line(False).strip()
    if not text.startswith(SEVERAL_LINES):
        return text
    text = text.removeprefix(SEVERAL_LINES)
    while not text.endswith(SEVERAL_LINES):
        try:
            text += "\n" + read_line(True)
        except EOFError:
            break
    return text.removesuffix(SEVERAL_LINES).strip()
